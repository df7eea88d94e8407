import test from "ava";
import fc from "fast-check";
import { parseModelConfig } from "#common/graph/config.js";
import { countLayers, fragmentsOf } from "#common/graph/fragments.js";
import { layoutOf, parameterLayout } from "#common/graph/layout.js";
import { variantLayout } from "#common/graph/variant.js";
import { stretchedLength } from "#common/tensor/stretches.js";

const LAYERS = 6;
const SMALL = { n_layer: LAYERS, n_head: 2, n_embd: 16, n_positions: 16, vocab_size: 256 };
const LLAMA = {
  vocab_size: 256,
  hidden_size: 16,
  intermediate_size: 32,
  num_hidden_layers: LAYERS,
  num_attention_heads: 2,
  max_position_embeddings: 32,
};
function configOf(fields: Record<string, unknown>) {
  const parsed = parseModelConfig(fields);
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.violations));
  return parsed.config;
}
const gpt2 = configOf({ model_type: "gpt2", ...SMALL });
const llama = configOf({ model_type: "llama", ...LLAMA });
const layouts = {
  gpt2: parameterLayout(gpt2),
  llama: parameterLayout(llama),
  adapters: variantLayout(llama, { lora: { rank: 2, alpha: 4, targets: ["q_proj"] } }).trainable,
};

for (const [name, layout] of Object.entries(layouts)) {
  test(`${name}: fragments are strided layers and together every value once`, (t) => {
    t.is(countLayers(layout), LAYERS);
    for (let count = 1; count <= LAYERS; count++) {
      const fragments = fragmentsOf(layout, count);
      const owner = new Int32Array(layout.total).fill(-1);
      for (const [index, stretches] of fragments.entries()) {
        let end = -1;
        for (const { start, length } of stretches) {
          t.true(start > end, "in order, and neighbours are joined");
          end = start + length;
          for (let i = start; i < end; i++) {
            t.is(owner[i], -1);
            owner[i] = index;
          }
        }
      }
      t.false(owner.includes(-1));
      for (const { name, offset, size } of layout.tensors) {
        const owners = new Set(owner.subarray(offset, offset + size));
        t.is(owners.size, 1, name);
        const layer = /\.(\d+)\./.exec(name)?.[1];
        if (layer !== undefined) t.deepEqual([...owners], [Number(layer) % count], name);
      }
    }
    t.deepEqual(fragmentsOf(layout, 1), [[{ start: 0, length: layout.total }]]);
  });
}

test("embeddings and head go where least is, so that no fragment is much larger than the others", (t) => {
  const sizes = fragmentsOf(layouts.gpt2, 4).map(stretchedLength);
  const layer = 12 * 16 * 16 + 13 * 16;
  const largest = 256 * 16;
  t.is(sizes[0], 2 * layer);
  t.is(sizes[1], 2 * layer);
  t.is((sizes[2] ?? 0) + (sizes[3] ?? 0), 2 * layer + largest + 16 * 16 + 32);
  t.true(Math.max(...sizes) - Math.min(...sizes) <= Math.max(layer, largest));
});

test("layers count as they are trained: some of them, in their order, make fragments too", (t) => {
  const tensors = [7, 2, 11].map((layer) => ({ name: `model.layers.${layer}.w`, shape: [layer] }));
  const layout = layoutOf(tensors);
  t.is(countLayers(layout), 3);
  // Layer 2 is the first, 7 the second, 11 the third; they lie in the order 7, 2, 11.
  t.deepEqual(fragmentsOf(layout, 2), [[{ start: 7, length: 13 }], [{ start: 0, length: 7 }]]);
  t.deepEqual(countLayers(layoutOf([{ name: "lm_head.weight", shape: [3] }])), 0);
});

test("no tensor is left out or cut, whatever the names", (t) => {
  const names = fc.uniqueArray(fc.tuple(fc.nat(4), fc.constantFrom("a.b", "norm"), fc.integer({ min: 1, max: 9 })), {
    selector: ([layer, name]) => `${layer}${name}`,
    minLength: 1,
    maxLength: 9,
  });
  fc.assert(
    fc.property(names, fc.array(fc.integer({ min: 1, max: 50 }), { maxLength: 3 }), (drawn, others) => {
      const layout = layoutOf([
        ...drawn.map(([layer, name, size]) => ({ name: `h.${layer}.${name}`, shape: [size] })),
        ...others.map((size, i) => ({ name: `outer${i}`, shape: [size, 1] })),
      ]);
      for (let count = 1; count <= countLayers(layout); count++) {
        const fragments = fragmentsOf(layout, count);
        const total = fragments.reduce((sum, stretches) => sum + stretchedLength(stretches), 0);
        if (total !== layout.total || fragments.some((stretches) => stretches.length === 0)) return false;
      }
      return true;
    }),
  );
  t.pass();
});
