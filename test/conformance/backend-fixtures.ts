import { existsSync, readdirSync } from "node:fs";
import { join, resolve } from "node:path";
import type { TestFn } from "ava";
import type { Backend } from "#agent/backend/backend.js";
import { generateCached, generateTokens } from "#agent/backend/generate.js";
import { createRng } from "#common/domain/rng.js";
import { buildDecodeGraph, buildLogitsGraph } from "#common/graph/logits.js";
import { expectedStory, loadStories, storiesAbsent, storiesTitle } from "#test/backend/support/stories.js";
import { holds, measureCase, readCase } from "#test/graph/parity.js";

const folder = resolve("../shared/fixtures/parity");
const absent = !existsSync(folder) && process.env["CI"] === undefined;
const cases = absent ? ["gpt2-tiny"] : readdirSync(folder).sort();

type Open = () => Promise<Backend>;

/** A backend against what PyTorch computed in float64: logits, gradients, losses, weights after steps. */
export function parityConformance(test: TestFn, name: string, open: Open): void {
  for (const one of cases) {
    const title = `${name}: ${one} equals PyTorch float64 (needs ../shared${absent ? ", which is absent here" : ""})`;
    (absent ? test.skip : test)(title, async (t) => {
      const measured = await measureCase(await open(), readCase(join(folder, one)));
      for (const row of measured) {
        t.log(`${row.what}: ${row.error.toExponential(2)}`);
        t.true(holds(row), `${row.what}: ${row.error}`);
      }
      t.true(measured.length >= 7, "logits, gradients, losses, norms, two sets of weights and the last loss");
    });
  }
}

const greedy = (count: number): Parameters<typeof generateTokens>[3] => ({ count, temperature: 0, topK: 0 });

async function collect(tokens: AsyncGenerator<number>): Promise<number[]> {
  const all: number[] = [];
  for await (const token of tokens) all.push(token);
  return all;
}

/** A backend writes the story that the model's author's program writes, with a cache and without. */
export function storiesConformance(test: TestFn, name: string, open: Open): void {
  const stories = storiesAbsent ? test.skip : test;

  stories(storiesTitle(`${name}: 200 greedy tokens of stories260K are the expected ones`), async (t) => {
    const { config, weights } = loadStories();
    const expected = expectedStory();
    const session = await (await open()).logits(buildLogitsGraph(config, { seqLen: expected.length }));
    const count = expected.length - 1;
    t.true(count >= 199);
    const got = await collect(generateTokens(session, weights, expected.slice(0, 1), greedy(count), createRng(0)));
    await session.dispose();
    t.deepEqual(got, expected.slice(1));
  });

  for (const { chunk, prompt } of [
    { chunk: 1, prompt: 1 },
    { chunk: 7, prompt: 20 },
  ]) {
    const what = `${name}: the cache changes nothing, a prompt of ${prompt} in chunks of ${chunk}`;
    stories(storiesTitle(what), async (t) => {
      const { config, weights } = loadStories();
      const expected = expectedStory();
      const session = await (await open()).decode(buildDecodeGraph(config, { capacity: 256, chunk }));
      const options = greedy(expected.length - prompt);
      const fresh = generateCached(session, weights, expected.slice(0, prompt), options, createRng(0));
      t.deepEqual(await collect(fresh), expected.slice(prompt));
      await session.dispose();
    });
  }
}
