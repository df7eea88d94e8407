import test from "ava";
import fc from "fast-check";
import { estimateCost } from "#common/graph/cost.js";
import { parseModelConfig, toHuggingFaceConfig, type ModelConfig } from "#common/graph/config.js";
import { initWeights } from "#common/graph/init.js";
import { parameterLayout } from "#common/graph/layout.js";

const tiny: ModelConfig = {
  family: "gpt2",
  vocabSize: 97,
  contextLength: 32,
  layers: 2,
  heads: 4,
  width: 32,
  layerNormEps: 1e-5,
};

const configs: fc.Arbitrary<ModelConfig> = fc
  .record({
    vocabSize: fc.integer({ min: 1, max: 300 }),
    contextLength: fc.integer({ min: 1, max: 64 }),
    layers: fc.integer({ min: 1, max: 4 }),
    heads: fc.integer({ min: 1, max: 4 }),
    size: fc.integer({ min: 1, max: 16 }),
  })
  .map(({ size, ...rest }) => ({ family: "gpt2", ...rest, width: rest.heads * size, layerNormEps: 1e-5 }));

test("every buildable config survives both written forms", (t) => {
  fc.assert(
    fc.property(configs, (config) => {
      t.deepEqual(parseModelConfig(config), { ok: true, config });
      t.deepEqual(parseModelConfig(JSON.parse(JSON.stringify(toHuggingFaceConfig(config)))), { ok: true, config });
    }),
    { numRuns: 50 },
  );
});

test("layerNormEps has a default", (t) => {
  const { layerNormEps: _, ...rest } = tiny;
  t.deepEqual(parseModelConfig(rest), { ok: true, config: tiny });
});

const own = (change: Record<string, unknown>): unknown => ({ ...tiny, ...change });
const huggingFace = (change: Record<string, unknown>): unknown => ({ ...toHuggingFaceConfig(tiny), ...change });

const refused: [string, unknown, string, RegExp][] = [
  ["no object", null, "", /object/],
  ["a list", [], "", /object/],
  ["no family", {}, "family", /missing/],
  ["an unknown family", own({ family: "gpt5" }), "family", /one of gpt2/],
  ["a family that is an object's own method", own({ family: "toString" }), "family", /one of gpt2/],
  ["an unknown model_type", { model_type: "bert" }, "model_type", /one of gpt2/],
  ["a width that the heads do not divide", own({ width: 30 }), "width", /multiple of heads \(4\)/],
  ["no layers", own({ layers: 0 }), "layers", /from 1/],
  ["negative heads", own({ heads: -4 }), "heads", /from 1/],
  ["half a token", own({ contextLength: 1.5 }), "contextLength", /whole number/],
  ["a vocabulary in words", own({ vocabSize: "many" }), "vocabSize", /whole number/],
  ["an endless vocabulary", own({ vocabSize: Infinity }), "vocabSize", /whole number/],
  ["NaN layers", own({ layers: NaN }), "layers", /whole number/],
  ["a vocabulary beyond reason", own({ vocabSize: 2 ** 40 }), "vocabSize", /1000000/],
  ["more parameters than can be trained", own({ width: 16384, heads: 1, layers: 100 }), "width", /smaller/],
  ["eps of 0", own({ layerNormEps: 0 }), "layerNormEps", /above 0/],
  ["a misspelt field", own({ layer: 3 }), "layer", /not a field/],
  ["another activation", huggingFace({ activation_function: "relu" }), "activation_function", /gelu_new/],
  ["an untied head", huggingFace({ tie_word_embeddings: false }), "tie_word_embeddings", /tied|shares/],
  ["another inner width", huggingFace({ n_inner: 100 }), "n_inner", /128/],
  ["cross attention", huggingFace({ add_cross_attention: true }), "add_cross_attention", /false/],
  ["n_embd of another number of heads", huggingFace({ n_head: 5 }), "n_embd", /multiple of n_head/],
];

for (const [what, value, field, description] of refused) {
  test(`a config with ${what} is refused by field`, (t) => {
    const parsed = parseModelConfig(value);
    if (parsed.ok) return t.fail("was accepted");
    t.deepEqual(
      parsed.violations.map((violation) => violation.field),
      [field],
    );
    t.regex(parsed.violations[0]?.description ?? "", description);
  });
}

test("all wrong fields are named at once, with their values", (t) => {
  const parsed = parseModelConfig(own({ layers: 0, heads: "x" }));
  if (parsed.ok) return t.fail("was accepted");
  t.deepEqual(
    parsed.violations.map(({ field, value }) => [field, value]),
    [
      ["layers", 0],
      ["heads", "x"],
    ],
  );
});

test("the layout covers the vector once, decayed tensors first", (t) => {
  fc.assert(
    fc.property(configs, (config) => {
      const { tensors, total, pieces } = parameterLayout(config);
      t.deepEqual(
        pieces.flatMap((piece) => piece.tensors),
        tensors,
      );
      let end = 0;
      for (const piece of pieces) {
        t.is(piece.offset, end);
        t.true(piece.tensors.every((tensor) => tensor.decay === piece.decay));
        end += piece.size;
      }
      t.is(end, total);
      let position = 0;
      for (const tensor of tensors) {
        t.is(tensor.offset, position);
        t.is(tensor.decay, tensor.shape.length === 2);
        t.is(tensor.decay, tensor.offset < (pieces.at(-1)?.offset ?? 0));
        position += tensor.size;
      }
      t.is(position, total);
      t.is(new Set(tensors.map((tensor) => tensor.name)).size, tensors.length);
      t.is(estimateCost(config, { batch: 1, seqLen: 1 }).parameters, total);
    }),
    { numRuns: 50 },
  );
});

test("GPT-2 small has its published number of parameters", (t) => {
  const small: ModelConfig = { ...tiny, vocabSize: 50257, contextLength: 1024, layers: 12, heads: 12, width: 768 };
  t.is(parameterLayout(small).total, 124_439_808);
});

test("the cost grows in step with batch and length", (t) => {
  const at = (batch: number, seqLen: number) => estimateCost(tiny, { batch, seqLen });
  t.true(at(2, 16).flopsPerStep > at(1, 16).flopsPerStep);
  t.true(at(2, 16).peakBytes > at(1, 16).peakBytes);
  // By hand: 6 x 16 tokens x (2 blocks x (12 x 32^2 + 2 x 16 x 32) + 97 x 32), and 16 for each parameter.
  t.is(at(1, 16).flopsPerStep, 6 * 16 * (2 * (12 * 32 ** 2 + 2 * 16 * 32) + 97 * 32) + 16 * at(1, 16).parameters);
});

test("first weights follow GPT-2's rule and the seed", (t) => {
  const config: ModelConfig = { ...tiny, width: 192, layers: 3 };
  const weights = initWeights(config, 5);
  t.deepEqual(weights, initWeights(config, 5));
  t.notDeepEqual(weights, initWeights(config, 6));
  const deviation = (name: string): number => {
    const place = parameterLayout(config).tensors.find((tensor) => tensor.name === name);
    if (place === undefined) throw new Error(name);
    const part = weights.subarray(place.offset, place.offset + place.size);
    return Math.sqrt(part.reduce((sum, x) => sum + x * x, 0) / part.length);
  };
  const near = (x: number, expected: number) => t.true(Math.abs(x / expected - 1) < 0.03, `${x} near ${expected}`);
  near(deviation("transformer.h.0.attn.c_attn.weight"), 0.04);
  near(deviation("transformer.h.0.mlp.c_proj.weight"), 0.04 / Math.sqrt(6));
  t.is(deviation("transformer.h.0.mlp.c_proj.bias"), 0);
  t.is(deviation("transformer.h.2.ln_1.weight"), 1);
  const wide = initWeights({ ...tiny, width: 1024, layers: 1 }, 5).subarray(0, 97 * 1024);
  near(Math.sqrt(wide.reduce((sum, x) => sum + x * x, 0) / wide.length), 0.02);
});
