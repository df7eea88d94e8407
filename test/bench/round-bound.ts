import { NatsUpdateLog } from "#common/adapters/nats/update-log.js";
import { openDigest } from "#common/tensor/digest.js";
import { purgeRound, type SharedUpdate, type VirtualAgent, type World } from "./virtual-agents.js";

/** Chunks of an agent under way at once, as its outbox has. */
const IN_FLIGHT = 8;

async function send({ device, plane }: VirtualAgent, round: string, { chunks }: SharedUpdate): Promise<number[]> {
  const digest = openDigest();
  const seqs: number[] = [];
  let next = 0;
  const lane = async (): Promise<void> => {
    for (let i = next++; i < chunks.length; i = next++) {
      const chunk = chunks[i] as Uint8Array;
      digest.add(chunk);
      seqs[i] = (await plane.uplink.appendChunk(round, `bound-${round}-${device}-${i}`, chunk)).seq;
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
  digest.finish();
  return seqs.sort((a, b) => a - b);
}

/**
 * What these parts take by themselves: the same bytes are sent to the log by as many agents, each connection in a window, then read
 * from it once, and hashed on both sides, all from memory and in one process; nothing is spooled, judged, summed or published. A
 * round that is read after it was sent cannot be quicker; one that were read meanwhile could be, by what a second core does.
 * @returns seconds
 */
export async function measureBound(
  { link, runs }: World,
  agents: readonly VirtualAgent[],
  round: string,
  update: SharedUpdate,
): Promise<number> {
  const log = new NatsUpdateLog(link, runs);
  const startedMs = performance.now();
  const sent = await Promise.all(agents.map((agent) => send(agent, round, update)));
  for (const [i, { device }] of agents.entries()) {
    const digest = openDigest();
    for await (const chunk of log.readChunks({ device, round }, sent[i] ?? [])) {
      if (chunk === undefined) throw new Error(`a chunk of ${device} is not in the log`);
      digest.add(chunk.bytes);
    }
    digest.finish();
  }
  const seconds = (performance.now() - startedMs) / 1000;
  await purgeRound(link, round);
  return seconds;
}
