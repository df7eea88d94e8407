import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import { sampleToken } from "#agent/backend/generate.js";
import { createRng } from "#common/domain/rng.js";
import { exportCheckpoint } from "#common/graph/checkpoint.js";
import { parseModelConfig } from "#common/graph/config.js";
import { parameterLayout } from "#common/graph/layout.js";
import { evaluateText } from "#services/cli/evaluation.js";
import type { Io } from "#services/cli/io.js";
import { CliError, EXIT } from "#services/cli/exit.js";
import { folderSource, generateText } from "#services/cli/generation.js";
import { runProgram } from "#services/cli/program.js";

const parsed = parseModelConfig({ family: "gpt2", vocabSize: 256, contextLength: 16, layers: 1, heads: 2, width: 16 });
if (!parsed.ok) throw new Error("the test's own config cannot be built");
const { config } = parsed;
const folder = mkdtempSync(join(tmpdir(), "shoal-eval-"));
// Weights of zero make every token as likely as any other: the loss is the logarithm of their number.
for (const [name, bytes] of Object.entries({
  ...exportCheckpoint(config, new Float32Array(parameterLayout(config).total)),
})) {
  writeFileSync(join(folder, name), bytes);
}
test.after.always(() => rmSync(folder, { recursive: true, force: true }));

const never = new AbortController().signal;
const TEXT = "It was the best of times, it was the worst of times. ".repeat(9);

test("the loss of a model that knows nothing is the logarithm of its tokens, whatever the context", async (t) => {
  for (const context of [1, 7, 16, 1000]) {
    const seen: number[] = [];
    const result = await evaluateText(folderSource(folder), TEXT, { context, threads: 1 }, never, (done) =>
      seen.push(done),
    );
    t.is(result.tokens, TEXT.length - 1);
    t.true(Math.abs(result.loss - Math.log(256)) < 1e-5, `${result.loss} with ${context}`);
    t.true(Math.abs(result.perplexity - 256) < 0.01);
    t.is(seen.at(-1), result.tokens);
    t.true(seen.every((done, i) => done > (seen[i - 1] ?? 0)));
  }
  const short = evaluateText(folderSource(folder), "x", { context: 8, threads: 1 }, never, () => undefined);
  await t.throwsAsync(short, { message: /less than two tokens/ });
});

test("eval and generate write JSON for programs, and refuse what is no model or no text", async (t) => {
  const run = async (...args: string[]): Promise<{ code: number; out: string; err: string }> => {
    let [out, err] = ["", ""];
    const io: Io = {
      out: (text) => (out += text),
      err: (text) => (err += text),
      terminal: false,
      width: 80,
      env: {},
      readStdin: () => Promise.resolve(TEXT),
      nowMs: () => 0,
    };
    return { code: await runProgram(args, io, never), out, err };
  };
  const judged = await run("eval", folder, "--text", "-", "--json");
  t.is(judged.code, 0, judged.err);
  const { tokens, loss } = JSON.parse(judged.out) as { tokens: number; loss: number };
  t.is(tokens, TEXT.length - 1);
  t.true(Math.abs(loss - Math.log(256)) < 1e-5);
  t.regex((await run("eval", folder, "--text", "-")).out, /perplexity: 256\.00/);
  t.is((await run("eval", folder, "--text", join(folder, "none.txt"))).code, 65);
  t.is((await run("eval", tmpdir(), "--text", "-")).code, 65);
  const made = await run("generate", folder, "--prompt", "It", "--max-tokens", "40", "--top-p", "0.5", "--json");
  t.is(made.code, 0, made.err);
  t.is(made.out, (await run("generate", folder, "--prompt", "It", "--tokens", "40", "--top-p", "0.5", "--json")).out);
});

test("a tokenizer with more tokens than the model is refused by the name of its file", async (t) => {
  const place = mkdtempSync(join(tmpdir(), "shoal-eval-"));
  t.teardown(() => rmSync(place, { recursive: true, force: true }));
  const small = { ...config, vocabSize: 3 };
  const files = exportCheckpoint(small, new Float32Array(parameterLayout(small).total));
  for (const [name, bytes] of Object.entries({ ...files })) writeFileSync(join(place, name), bytes);
  const refusals = async (): Promise<string[]> => {
    const options = { prompt: "ab", tokens: 2, temperature: 0, topK: 0, seed: 1, threads: 1 };
    const tried = [
      () => evaluateText(folderSource(place), "abab", { context: 4, threads: 1 }, never, () => undefined),
      () => generateText(folderSource(place), options).next(),
    ];
    const messages: string[] = [];
    for (const run of tried) {
      const error: unknown = await run().then(
        () => undefined,
        (reason: unknown) => reason,
      );
      if (error === undefined) continue;
      const refusal = error instanceof CliError ? error : undefined;
      t.is(refusal?.exitCode, EXIT.invalid);
      messages.push(refusal?.message ?? "");
    }
    return messages;
  };
  const none = await refusals();
  t.is(none.length, 2);
  for (const message of none) t.regex(message, /has no tokenizer\.json, and bytes.* are 256 tokens, the model 3:/);
  const described = join(place, "shoal_tokenizer.json");
  writeFileSync(described, '{"kind":"chars","chars":"abcd"}');
  const foreign = await refusals();
  t.is(foreign.length, 2);
  for (const message of foreign) t.true(message.startsWith(`${described} is not of this model: it has 4 tokens`));
  writeFileSync(described, '{"kind":"chars","chars":"ab"}');
  t.deepEqual(await refusals(), []);
});

test("the nucleus is the likeliest tokens that together have the wished probability", (t) => {
  const logits = Float32Array.from([Math.log(1), Math.log(5), Math.log(3), Math.log(1)]);
  const drawn = (topP: number): number[] => {
    const rng = createRng(4);
    const all = Array.from({ length: 300 }, () =>
      sampleToken(logits, { count: 1, temperature: 1, topK: 0, topP }, rng),
    );
    return [...new Set(all)].sort();
  };
  t.deepEqual(drawn(0.4), [1]);
  t.deepEqual(drawn(0.6), [1, 2]);
  t.deepEqual(drawn(1), [0, 1, 2, 3]);
});
