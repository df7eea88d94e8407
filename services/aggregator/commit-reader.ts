import { screen, type AcceptContext, type Commit, type PayloadFacts } from "#common/domain/accept.js";
import { isSiteUpdate } from "#common/domain/site.js";
import type { Digests } from "#common/ports/digests.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { openUpdates } from "#common/runtime/chunk-reader.js";
import { takePayloads } from "#common/runtime/payload.js";
import { InvariantError } from "#common/tensor/invariant.js";
import type { RoundSums, SummedCommit } from "./running-sums.js";
import { openShardSums, type Shard } from "./shards.js";

/** What reading an update has shown. */
export interface Look {
  readonly facts: PayloadFacts;
  /** By which a fold by shards knows its chunks again. */
  readonly shardChecksums: number[];
}

/** Reads the commits of a batch, in their order. */
export interface CommitsReader {
  /**
   * Looks at a commit whose manifest is in order, and at those behind it that are read abreast with it: their chunks pass by the
   * round's sums together.
   * @param context that judges it.
   */
  look(commit: Commit, context: AcceptContext): Promise<Look>;
  /** Whether it, or one behind it, was looked at already, beside one before it. */
  isPassed(commit: Commit): boolean;
  close(): Promise<void>;
}

/** A commit with values whose manifest is in order. */
type Readable = Commit & SummedCommit;

const isReadable = (commit: Commit, context: AcceptContext): commit is Readable =>
  commit.manifest !== undefined && commit.manifest.values > 0 && screen(commit, context) === undefined;

/**
 * Commits of one device each, the first of them this one, that the group still holds. Whether a gateway may speak for its site is
 * asked at its turn, so its commit is read by itself.
 */
function abreast(first: Readable, behind: readonly Readable[], context: AcceptContext): Readable[] {
  const chosen = [first];
  if (isSiteUpdate(first.manifest)) return chosen;
  const devices = new Set([first.device]);
  for (const commit of behind) {
    if (isSiteUpdate(commit.manifest)) break;
    if (devices.has(commit.device) || !isReadable(commit, context)) continue;
    devices.add(commit.device);
    chosen.push(commit);
  }
  return chosen;
}

/**
 * Opens these commits for reading as one sequence. Those that no reading can save are left out.
 * @param sums that they are added to, if any.
 */
export function openCommits(
  { log, digests }: { log: UpdateLog; digests: Digests },
  commits: readonly Commit[],
  context: Omit<AcceptContext, "gatewaySite">,
  shards: readonly Shard[],
  sums: RoundSums | undefined,
): CommitsReader {
  // Whether a site's gateway may speak for it is asked later.
  const worthReading = commits.filter((commit): commit is Readable =>
    isReadable(commit, { ...context, gatewaySite: commit.manifest?.site }),
  );
  const updates = openUpdates(
    log,
    worthReading.map(({ device, round, manifest: { chunkSeqs, sizeBytes } }) => {
      return { device, round, seqs: chunkSeqs, sizeBytes };
    }),
  );
  const places = new Map(worthReading.map(({ seq }, place) => [seq, place]));
  const placeOf = ({ seq }: Commit): number => {
    const place = places.get(seq);
    if (place === undefined) throw new InvariantError(`commit ${seq} was not to be read`);
    return place;
  };
  const looks = new Map<number, Look>();
  let lastSeq = 0;

  const read = async (group: readonly Readable[], codec: AcceptContext["codec"]): Promise<void> => {
    const sources = group.map((each) => {
      const place = placeOf(each);
      return { manifest: each.manifest, next: () => updates.next(place) };
    });
    const checksums = group.map(() => openShardSums(shards));
    const add = sums?.begin(group);
    const facts = await takePayloads(sources, codec, digests, (start, chunks) => {
      chunks.forEach((chunk, i) => {
        if (chunk !== undefined) checksums[i]?.add(start, chunk.checksum);
      });
      add?.(
        start,
        chunks.map((chunk) => chunk?.bytes),
      );
    });
    group.forEach(({ seq }, i) => {
      lastSeq = Math.max(lastSeq, seq);
      looks.set(seq, { facts: facts[i] as PayloadFacts, shardChecksums: checksums[i]?.finish() ?? [] });
    });
  };
  return {
    async look(commit, current) {
      if (!looks.has(commit.seq)) {
        const place = placeOf(commit);
        const behind = worthReading.slice(place + 1, updates.endOfGroup(place));
        const unseen = behind.filter(({ seq }) => !looks.has(seq));
        await read(abreast(worthReading[place] as Readable, unseen, current), current.codec);
      }
      return looks.get(commit.seq) as Look;
    },
    isPassed: ({ seq }) => seq <= lastSeq,
    close: () => updates.close(),
  };
}
