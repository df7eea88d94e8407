import test from "ava";
import fc from "fast-check";
import { parseModelConfig, type ModelConfig } from "#common/graph/config.js";
import { parameterLayout } from "#common/graph/layout.js";
import { resolveVariant } from "#common/graph/variant.js";

function tiny(): ModelConfig {
  const parsed = parseModelConfig({ family: "gpt2", vocabSize: 9, contextLength: 4, layers: 2, heads: 1, width: 2 });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.violations));
  return parsed.config;
}
const config = tiny();
const names = parameterLayout(config).tensors.map(({ name }) => name);

/** Names of the tensors that a pattern chooses. */
function chosen(pattern: string): string[] {
  const resolved = resolveVariant(config, { trained: [pattern] });
  return resolved.ok ? resolved.layout.trainable.tensors.map(({ name }) => name) : [];
}

test("a pattern of many stars is matched as fast as any other", (t) => {
  t.deepEqual(chosen("*".repeat(200)), names);
  t.deepEqual(chosen(`${"*h*".repeat(200)}#`), []);
  t.deepEqual(chosen(`${"*".repeat(200)}#`), []);
});

test("a star stands for any part of a name, everything else for itself", (t) => {
  const name = fc.constantFrom(...names);
  const pattern = name.chain((text) =>
    fc.array(fc.tuple(fc.nat(text.length), fc.nat(6)), { maxLength: 3 }).map((cuts) =>
      // Cuts some characters out of a real name, and so often matches several.
      cuts.reduce((left, [at, length]) => `${left.slice(0, at)}*${left.slice(at + length)}`, text),
    ),
  );
  fc.assert(
    fc.property(pattern, (text) => {
      const escaped = text.split("*").map((part) => part.replaceAll(".", "\\."));
      const wanted = new RegExp(`^${escaped.join(".*")}$`);
      t.deepEqual(
        chosen(text),
        names.filter((each) => wanted.test(each)),
      );
    }),
  );
  t.deepEqual(chosen("transformer.wte.weight*weight"), []);
  t.deepEqual(chosen("transformer.wte.weigh."), []);
});
