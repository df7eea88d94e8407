import type { UpdateLog } from "#common/ports/update-log.js";
import { readEach } from "#common/runtime/chunk-reader.js";
import type { AggregatorPorts } from "#services/aggregator/controller.js";

export type Around = (call: () => Promise<unknown>) => Promise<unknown>;

/** The same object with every method that returns a promise run through `around`. */
function wrap<T extends object>(target: T, around: Around): T {
  return new Proxy(target, {
    get(object, key) {
      const member: unknown = Reflect.get(object, key);
      if (typeof member !== "function") return member;
      return (...args: unknown[]) => around(() => Reflect.apply(member, object, args) as Promise<unknown>);
    },
  });
}

/** The same log, whose runs of chunks are calls each. */
const readingEach = (log: UpdateLog): UpdateLog => ({
  commits: (round, afterSeq) => log.commits(round, afterSeq),
  readCommit: (seq) => log.readCommit(seq),
  readChunk: (seq) => log.readChunk(seq),
  readChunks: (of, seqs) => readEach(log, of, seqs),
  watchCommits: (signal) => log.watchCommits(signal),
  purgeRound: (round) => log.purgeRound(round),
});

/** The world of a replica whose every call goes through `around`. */
export const wrapped = (ports: AggregatorPorts, around: Around): AggregatorPorts => ({
  ...ports,
  store: wrap(ports.store, around),
  blobs: wrap(ports.blobs, around),
  log: readingEach(wrap(ports.log, around)),
  enqueue: async (key) => {
    await around(() => ports.enqueue(key));
  },
});

/** A crash at call number `at`: before it takes effect, or after, when the caller never learns of it. */
export function crashAt(at: number, after: boolean): { around: Around; crashed: () => boolean } {
  let calls = 0;
  return {
    crashed: () => calls >= at,
    around: async (call) => {
      calls += 1;
      if (calls < at) return call();
      if (calls === at && after) await call();
      throw new Error("killed");
    },
  };
}

/** Stands still at call number `at`, before it takes effect, or after, when the caller has not learned of it; goes on when it is let go. */
export function pauseAt(at: number, after: boolean): { around: Around; reached: Promise<"paused">; letGo: () => void } {
  let calls = 0;
  let letGo = (): void => undefined;
  let reach = (_: "paused"): void => undefined;
  const gate = new Promise<void>((resolve) => (letGo = resolve));
  const reached = new Promise<"paused">((resolve) => (reach = resolve));
  const pause = async (): Promise<void> => {
    reach("paused");
    await gate;
  };
  return {
    reached,
    letGo,
    around: async (call) => {
      calls += 1;
      const isHere = calls === at;
      if (isHere && !after) await pause();
      const answer = await call();
      if (isHere && after) await pause();
      return answer;
    },
  };
}
