import test from "ava";
import fc from "fast-check";
import { Round } from "#proto/shoal/v1/round.js";
import { createRng } from "#common/domain/rng.js";
import { countLeftOut, countUnnamed, MOST_EXCLUSIONS, nameLeftOut } from "#common/domain/left-out.js";
import { newMeta } from "#common/domain/resources.js";

const exclusion = (n: number, ...reasons: string[]) => ({ device: `device-${String(n).padStart(6, "0")}`, reasons });

test("few devices are named all, in order of name", (t) => {
  t.deepEqual(nameLeftOut([]), { exclusions: [], leftOut: 0 });
  const all = Array.from({ length: MOST_EXCLUSIONS }, (_, n) => exclusion(n, "silent"));
  t.deepEqual(nameLeftOut(all.toReversed()), { exclusions: all, leftOut: 0 });
});

test("of many devices every reason is named, in whatever order they come, and how many there are", (t) => {
  fc.assert(
    fc.property(
      fc.integer({ min: 201, max: 900 }),
      fc.integer({ min: 1, max: 150 }),
      fc.nat(),
      (count, kinds, seed) => {
        const rng = createRng(seed);
        const all = Array.from({ length: count }, (_, n) => exclusion(n, `reason ${rng.int(kinds)}`));
        const { exclusions, leftOut } = nameLeftOut(all);
        t.is(leftOut, count);
        t.is(exclusions.length, MOST_EXCLUSIONS);
        t.is(new Set(exclusions.map(({ device }) => device)).size, MOST_EXCLUSIONS);
        const reasonsOf = (of: typeof all): Set<string> => new Set(of.flatMap(({ reasons }) => reasons));
        t.deepEqual([...reasonsOf(exclusions)].sort(), [...reasonsOf(all)].sort());
        t.deepEqual(
          exclusions.map(({ device }) => device),
          exclusions.map(({ device }) => device).sort(),
        );
        t.deepEqual(nameLeftOut(rng.shuffle(all)), { exclusions, leftOut });
      },
    ),
    { numRuns: 50 },
  );
});

test("those that are not named are counted, also of a round from before that was said", (t) => {
  const all = Array.from({ length: 3 * MOST_EXCLUSIONS }, (_, n) => exclusion(n, "silent"));
  for (const [count, unnamed] of [
    [0, 0],
    [MOST_EXCLUSIONS, 0],
    [MOST_EXCLUSIONS + 1, 1],
    [3 * MOST_EXCLUSIONS, 2 * MOST_EXCLUSIONS],
  ] as const) {
    const status = nameLeftOut(all.slice(0, count));
    t.deepEqual([countLeftOut(status), countUnnamed(status)], [count, unnamed]);
  }
  const old = { exclusions: all, leftOut: 0 };
  t.deepEqual([countLeftOut(old), countUnnamed(old)], [all.length, 0]);
});

test("a round that leaves out twenty thousand devices fits one message of the store", (t) => {
  const why =
    "has 512 MiB of memory for the agent; the job needs 900 MiB: lower batchSize or seqLen, raise accumulate, or keep the base in int8";
  const all = Array.from({ length: 20_000 }, (_, n) => exclusion(n, `has been silent since ${n}`, why));
  const status = { phase: "Planning", ...nameLeftOut(all) };
  const text = JSON.stringify(Round.toJSON(Round.fromPartial({ metadata: newMeta("one-1"), status })));
  t.true(text.length < 100_000, `${text.length}`);
  t.is(Round.fromJSON(JSON.parse(text)).status?.leftOut, 20_000);
});
