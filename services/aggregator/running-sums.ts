import type { StrategySpec } from "#proto/shoal/v1/job.js";
import type { UpdateManifest, Verdict } from "#proto/shoal/v1/round.js";
import type { Codec } from "#common/tensor/codec.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { openVectorFold, type VectorFold, type WeightedChunk } from "#common/tensor/kernels/kernels.js";
import { weightOf } from "./fold.js";
import type { FragmentView } from "./fragment-view.js";
import type { KnownMean } from "./mean-step.js";
import type { Shard } from "./shards.js";
import { strategyByName } from "./strategies/table.js";

/** What a round's updates have in common. */
export interface SummedRound {
  /** Of the round, so that one of the same name is another. */
  readonly uid: string;
  readonly values: number;
  readonly codec: Codec;
  readonly options: StrategySpec;
  /** Memory of its fold beside the sums. */
  readonly foldBytes: number;
  /** Reads what the round starts from, shard by shard: begun with the first update, so that the fold need not wait for it. */
  readonly readBases: () => Promise<readonly FragmentView[]>;
  /** Whether the fold can do without reading it beforehand. */
  readonly isStreamed: boolean;
}

/** All that the fold of a round needs. */
export interface SummedFold {
  mean(shard: Shard): KnownMean;
  /** What the round starts from, by shards; none if it is to be read in parts. */
  bases(): Promise<readonly FragmentView[]>;
}

/** A commit whose update is to be summed. */
export interface SummedCommit {
  readonly seq: number;
  readonly manifest: UpdateManifest;
}

/** Adds the chunks of the updates begun, whose values belong at `start`, in their order; undefined for one that is bad. */
export type AddChunks = (start: number, chunks: readonly (Uint8Array | undefined)[]) => void;

/**
 * The weighted sums of a round's accepted updates, in the order in which they were accepted: what a mean of them would come to,
 * taken while they are judged, so that they need not be read again.
 */
export interface RoundSums {
  /** Begins updates that are read abreast, in the order in which they will be judged. */
  begin(commits: readonly SummedCommit[]): AddChunks;
  /** Ends the first of those begun. One that does not count, or is not the first, has spoilt the sums. */
  end(commitSeq: number, accepted: boolean): void;
}

class Sums implements RoundSums, SummedFold {
  readonly #fold: VectorFold;
  readonly #bases: Promise<readonly FragmentView[]>;
  readonly #weights: number[] = [];
  readonly #seqs: number[] = [];
  readonly #begun: { seq: number; weight: number }[] = [];
  isSpoilt = false;

  constructor(private readonly round: SummedRound) {
    this.#fold = openVectorFold(round.codec, round.values);
    this.#bases = round.readBases();
    // Who folds sees the failure; perhaps nobody does.
    this.#bases.catch(() => undefined);
  }

  get sizeBytes(): number {
    return neededBytes(this.round);
  }

  begin(commits: readonly SummedCommit[]): AddChunks {
    const weights = commits.map(({ manifest }) => weightOf(this.round.options.weighting, manifest));
    commits.forEach(({ seq }, i) => this.#begun.push({ seq, weight: weights[i] as number }));
    return (start, chunks) => {
      if (this.isSpoilt) return;
      const weighted: WeightedChunk[] = [];
      chunks.forEach((bytes, i) => {
        const factor = weights[i] ?? 0;
        if (bytes !== undefined && factor !== 0) weighted.push({ bytes, factor });
      });
      this.isSpoilt = !this.#fold.add(start, weighted);
    };
  }

  end(commitSeq: number, accepted: boolean): void {
    const ended = this.#begun.shift();
    this.isSpoilt ||= !accepted || ended?.seq !== commitSeq;
    if (ended === undefined) return;
    this.#seqs.push(ended.seq);
    this.#weights.push(ended.weight);
  }

  /** Read once more if that failed the first time. */
  bases(): Promise<readonly FragmentView[]> {
    return this.#bases.catch(() => this.round.readBases());
  }

  /** Whether they hold updates that count, and nothing else. */
  get isWhole(): boolean {
    return !this.isSpoilt && this.#begun.length === 0;
  }

  isOf(seqs: readonly number[]): boolean {
    if (!this.isWhole) return false;
    return seqs.length === this.#seqs.length && seqs.every((seq, i) => seq === this.#seqs[i]);
  }

  /** sum n_k x_k / sum n_k of a range: the bits of a mean from the log of the same updates in the same order. */
  mean({ start }: Shard): KnownMean {
    let total = 0;
    for (const weight of this.#weights) total += weight;
    // Nothing was added for weights of zero.
    const by = total > 0 ? total : 1;
    return { updates: this.#weights.length, read: (from, count) => this.#fold.mean(start + from, count, by) };
  }
}

/** Undefined if the system has no memory for them. */
function openSums(round: SummedRound): Sums | undefined {
  try {
    return new Sums(round);
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

/** Idle sums at most, however small: each has a memory of the kernels, of which a process can have some ten thousand. */
const MOST_IDLE = 32;

/** Memory for a float64 of every value, and for the fold. */
const neededBytes = ({ values, foldBytes }: SummedRound): number => 8 * values + foldBytes;

/** Whether the strategy's result depends on the weighted sums of the updates alone, with weights that their manifests tell. */
function isSummable({ options, codec }: SummedRound): boolean {
  return strategyByName(options.name)?.rule.kind === "mean" && options.normBound === 0 && (codec.vectors ?? 1) === 1;
}

/**
 * Sums of the rounds that this process judges, 8 bytes a value, and what the rounds start from, as many as fit. They are a shortcut and nothing depends on them:
 * a round whose updates were judged by several replicas, or by one that was killed since, is folded from the log.
 */
export class RunningSums {
  /** The one used longest ago first. */
  readonly #idle = new Map<string, Sums>();
  readonly #out = new Set<Sums>();

  constructor(private readonly maxBytes: number) {}

  /**
   * Takes the sums of a round out, to add updates; nobody else has them until they are put back.
   * @param accepted commits whose updates count already, in the order of their verdicts.
   * @returns undefined if there are none for just these, or no room.
   */
  take(round: SummedRound, accepted: readonly number[]): RoundSums | undefined {
    if (!isSummable(round)) return undefined;
    const kept = this.#idle.get(round.uid);
    this.#idle.delete(round.uid);
    const sums = kept?.isOf(accepted) === true ? kept : this.#start(round, accepted);
    if (sums !== undefined) this.#out.add(sums);
    return sums;
  }

  /** Puts back what was taken; `durable` says whether the verdicts on all that was added are written. */
  put(uid: string, sums: RoundSums, durable: boolean): void {
    if (!(sums instanceof Sums) || !this.#out.delete(sums)) throw new InvariantError("these sums were not taken");
    if (durable && sums.isWhole) this.#idle.set(uid, sums);
  }

  /**
   * Takes the sums of a round out for its fold, in which nobody adds to them and no other round has their memory.
   * @returns undefined if these updates, in this order, are not what was summed, or somebody else has them.
   */
  borrow(uid: string, updates: readonly Verdict[]): SummedFold | undefined {
    const sums = this.#idle.get(uid);
    const isTheirs = updates.length > 0 && sums?.isOf(updates.map(({ commitSeq }) => commitSeq)) === true;
    if (!isTheirs) return undefined;
    this.#idle.delete(uid);
    this.#out.add(sums);
    return sums;
  }

  /** Ends what `borrow` began; of a round that is folded nothing is kept. */
  giveBack(uid: string, fold: SummedFold, isFolded: boolean): void {
    if (!(fold instanceof Sums) || !this.#out.delete(fold)) throw new InvariantError("these sums were not borrowed");
    if (!isFolded) this.#idle.set(uid, fold);
  }

  /** Lets go of a round. */
  drop(uid: string): void {
    this.#idle.delete(uid);
  }

  #start(whole: SummedRound, accepted: readonly number[]): Sums | undefined {
    const isTooLarge = neededBytes(whole) > this.maxBytes;
    const alone = { foldBytes: 0, readBases: () => Promise.resolve([]) };
    const round = isTooLarge && whole.isStreamed ? { ...whole, ...alone } : whole;
    const needed = neededBytes(round);
    if (accepted.length > 0 || needed > this.maxBytes) return undefined;
    for (const uid of this.#idle.keys()) {
      if (this.#idle.size < MOST_IDLE && this.#heldBytes() + needed <= this.maxBytes) break;
      this.#idle.delete(uid);
    }
    return this.#heldBytes() + needed <= this.maxBytes ? openSums(round) : undefined;
  }

  #heldBytes(): number {
    return [...this.#idle.values(), ...this.#out].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  }
}
