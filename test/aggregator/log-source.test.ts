import test from "ava";
import { UpdateManifest } from "#proto/shoal/v1/round.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { decodeUpdate, encodeUpdate } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { openLogSource, type AcceptedUpdate } from "#services/aggregator/log-source.js";
import { cutShards, type Shard } from "#services/aggregator/shards.js";
import { draw } from "./world.js";

/** A chunk of int8 and a bit. */
const VALUES = 540_000;
const ROUND = "tiny-1";
const codec = codecByName("int8") as Codec;

/** Appends so many updates whose chunks lie in turns; what they are and what they decode to. */
async function fill(
  log: MemoryUpdateLog,
  count: number,
): Promise<{ updates: AcceptedUpdate[]; decoded: Float32Array[] }> {
  const encoded = Array.from({ length: count }, (_, i) => encodeUpdate(draw(VALUES, i), codec));
  const seqs: number[][] = encoded.map(() => []);
  for (let chunk = 0; chunk < (encoded[0]?.length ?? 0); chunk++) {
    for (const [i, chunks] of encoded.entries()) {
      const bytes = chunks[chunk] as Uint8Array;
      seqs[i]?.push((await log.uplink(`d${i}`).appendChunk(ROUND, `${i}-${chunk}`, bytes)).seq);
    }
  }
  const updates = seqs.map((chunkSeqs, i) => ({
    manifest: UpdateManifest.fromPartial({ device: `d${i}`, round: ROUND, values: VALUES, chunkSeqs, tokens: i + 1 }),
    norm: 1,
    staleness: 0,
    check: () => ({ add: () => undefined, holds: () => true }),
  }));
  return { updates, decoded: encoded.map((chunks) => decodeUpdate(chunks, VALUES, codec)) };
}

const shards = cutShards(VALUES, codec, codec.chunkValues);

test("a shard of few updates is read as runs, of many chunk by chunk, and comes to the same", async (t) => {
  for (const count of [3, 7]) {
    const log = new MemoryUpdateLog();
    const { updates, decoded } = await fill(log, count);
    for (const shard of shards) {
      const source = openLogSource(log, codec, shard, "tokens", updates);
      const factors = Float64Array.from(updates, (_, k) => (k === 1 ? 0 : k + 1));
      const mean = new Float64Array(shard.end - shard.start);
      await source.mean(factors, 2, mean);
      const expected = mean.map((_, i) => {
        let sum = 0;
        decoded.forEach((values, k) => (sum += (factors[k] as number) * (values[shard.start + i] as number)));
        return sum / 2;
      });
      t.is(Buffer.compare(Buffer.from(mean.buffer), Buffer.from(expected.buffer)), 0, `${count} updates`);
      await source.columns((start, columns) => {
        columns.forEach((column, k) => {
          const from = shard.start + start;
          const due = decoded[k]?.slice(from, from + column.length) ?? new Float32Array();
          t.is(Buffer.compare(Buffer.from(column.buffer), Buffer.from(due.buffer)), 0);
        });
      });
    }
  }
});

test("a chunk that is gone is damage, whether read in a run or by itself", async (t) => {
  for (const count of [2, 6]) {
    const log = new MemoryUpdateLog();
    const { updates } = await fill(log, count);
    const [shard] = shards as [Shard];
    await log.purge({ round: ROUND, device: "d1", upToSeq: Number.MAX_SAFE_INTEGER });
    const source = openLogSource(log, codec, shard, "tokens", updates);
    const out = new Float64Array(shard.end);
    await t.throwsAsync(source.mean(new Float64Array(count).fill(1), 1, out), { code: "LOG_CORRUPT" });
  }
});
