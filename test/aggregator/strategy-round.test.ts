import test from "ava";
import type { StrategySpec } from "#proto/shoal/v1/job.js";
import { decodeUpdate, encodeUpdate } from "#common/tensor/chunk.js";
import { fromBytes, l2Norm, toBytes } from "#common/tensor/flat.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { replayRound } from "#services/aggregator/replay.js";
import { strategyByName, strategyNames } from "#services/aggregator/strategies/table.js";
import { foldRoundOf, memorySource, specOf } from "./source.js";
import { commit, createWorld, DEVICES, draw, freeze, reconcile, resultOf, upload, type WorldOptions } from "./world.js";

/** A little more than a chunk. */
const PARAMETERS: Readonly<Record<string, number>> = {
  fp32: 132_000,
  bf16: 263_000,
  int8: 521_000,
  int4: 521_000,
  topk: 525_000,
};
const STEPS = [10, 7, 4];
const drawn = DEVICES.map((_, i) => draw(525_000, i));

for (const [n, strategy] of strategyNames.entries()) {
  const codec = strategy === "sparseLoco" ? "topk" : (["fp32", "bf16", "int8", "int4"][n % 4] as string);
  const normBound = n % 3 === 0 ? 5 : 0;
  test(`a job with strategy ${strategy} and codec ${codec}${normBound > 0 ? ", bounded," : ""} is folded from the log`, async (t) => {
    const values = PARAMETERS[codec] as number;
    const deltas = drawn.map((delta) => delta.subarray(0, values));
    const parameters = values / (strategyByName(strategy)?.vectors ?? 1);
    const options: WorldOptions = { parameters, strategy, codec, normBound };
    const world = await createWorld(options);
    for (const [i, device] of DEVICES.entries()) {
      await commit(world, await upload(world, device, deltas[i] as Float32Array, STEPS[i]));
    }
    await reconcile(world);
    await freeze(world);
    await reconcile(world);
    const result = await resultOf(world);

    const received = deltas.map((delta) => decodeUpdate(encodeUpdate(delta, world.codec), values, world.codec));
    const source = memorySource(received, STEPS, world.codec.chunkValues);
    const spec: StrategySpec = specOf(strategy, { normBound });
    const expected = await foldRoundOf(source, spec, { weights: world.base, state: undefined });
    t.is(result?.updateNorm, expected.updateNorm);
    t.true(expected.updateNorm > 0);
    t.is(result?.weights?.digest, sha256Digest(toBytes(expected.weights)));
    const { state } = expected;
    t.is(result?.outerState?.digest, state === undefined ? "" : sha256Digest(toBytes(state)));
    t.is((await replayRound(world.ports, "tiny-1")).weightsDigest, result?.weights?.digest ?? "");

    const bytes = await world.blobs.get(result?.weights?.digest ?? "");
    const weights = fromBytes(bytes ?? new Uint8Array());
    t.true(l2Norm(weights.map((value, i) => value - (world.base[i] as number))) > 0.1, "it moved");
  });
}

test("every pass over the log checks what it reads against the digests", async (t) => {
  for (const strategy of ["fedavg", "krum"]) {
    const world = await createWorld({ parameters: 132_000, strategy, codec: "fp32" });
    const deltas = drawn.map((delta) => delta.subarray(0, 132_000));
    for (const [i, device] of DEVICES.entries())
      await commit(world, await upload(world, device, deltas[i] as Float32Array));
    await reconcile(world);
    await freeze(world);
    const read = world.log.readChunk.bind(world.log);
    const swapped = [await read(1), await read(2)] as const;
    const log = Object.assign(Object.create(world.log) as typeof world.log, {
      // The same device's bytes with one of them changed.
      readChunk: async (seq: number) => {
        const chunk = seq === 2 ? swapped[1] : await read(seq);
        if (seq !== 2 || chunk === undefined) return chunk;
        const bytes = chunk.bytes.slice();
        bytes[0] = (bytes[0] as number) ^ 1;
        return { ...chunk, bytes };
      },
    });
    const broken = { ...world, ports: { ...world.ports, log } };
    await t.throwsAsync(reconcile(broken), { code: "LOG_CORRUPT" }, strategy);
    t.is(await resultOf(world), undefined);
    await reconcile(world);
    t.truthy(await resultOf(world));
  }
});
