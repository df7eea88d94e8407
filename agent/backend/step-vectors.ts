import type { LaneGraphs } from "#common/graph/lanes.js";
import type { AdamWOptions } from "#common/graph/optimizers/adamw.js";
import { optimizerOf } from "#common/graph/optimizers/table.js";
import { CLIP_EPS } from "#common/graph/train.js";
import type { RoundTerms } from "./backend.js";
import { TrainedVectors } from "./buffers.js";
import type { Kernels } from "./kernels/module.js";

const PAGE_BYTES = 65_536;
/** Vectors begin at multiples of it, a cache line; the first place is that of no vector. */
const ALIGNMENT = 64;

/** The places of vectors in the kernels' memory, which is made as large as all of them at once: growing moves it. */
class VectorMemory {
  readonly kernels: Kernels;
  readonly #bytes: number;
  #end = ALIGNMENT;

  constructor(kernels: Kernels, vectors: number, values: number) {
    this.kernels = kernels;
    this.#bytes = Math.ceil((values * Float32Array.BYTES_PER_ELEMENT) / ALIGNMENT) * ALIGNMENT;
    const { memory } = kernels;
    const missing = this.#end + vectors * this.#bytes - memory.buffer.byteLength;
    memory.grow(Math.max(0, Math.ceil(missing / PAGE_BYTES)));
  }

  vector(values: number): Float32Array {
    const vector = new Float32Array(this.kernels.memory.buffer, this.#end, values);
    this.#end += this.#bytes;
    return vector;
  }
}

/** Neighbouring values to which weight decay applies, or does not. */
interface Stretch {
  readonly begin: number;
  readonly count: number;
  readonly decay: boolean;
}

function stretchesOf(pieces: LaneGraphs["pieces"]): Stretch[] {
  const stretches: Stretch[] = [];
  let begin = 0;
  for (const { size, decay } of pieces) {
    const last = stretches.at(-1);
    if (last?.decay === decay) stretches[stretches.length - 1] = { ...last, count: last.count + size };
    else stretches.push({ begin, count: size, decay });
    begin += size;
  }
  return stretches;
}

type Factors = [beta1: number, intoM: number, beta2: number, intoV: number, rate: number, eps: number];

/** The factors of a step of AdamW, folded as in common/graph/optimizers/adamw.ts. */
function adamwFactors(options: AdamWOptions, lr: number, step: number, scale: number): Factors {
  const { beta1, beta2, eps } = options;
  const rootC2 = Math.sqrt(1 - beta2 ** step);
  const rate = (lr * rootC2) / (1 - beta1 ** step);
  return [beta1, (1 - beta1) * scale, beta2, (1 - beta2) * scale * scale, rate, eps * rootC2];
}

/**
 * The vectors of a step in lanes and the end of it: the lanes' gradients are added up, clipped by their global norm, and
 * taken into the weights. A graph's operators would go through memory once each; AdamW's kernel does it all in one pass.
 */
export class StepVectors {
  readonly trained: TrainedVectors;
  /** One of each lane; their sum is in the first. */
  readonly gradients: readonly Float32Array[];
  readonly #kernels: Kernels;
  readonly #options: LaneGraphs["options"];
  readonly #stretches: readonly Stretch[];
  readonly #anchor: Float32Array | undefined;
  readonly #correction: Float32Array | undefined;
  #terms: { readonly anchored: boolean; readonly corrected: boolean; readonly mu: number | undefined };

  constructor(kernels: Kernels, { lanes, options, pieces }: LaneGraphs) {
    const { slots } = optimizerOf(options);
    const terms = [options.proximal, options.corrected].filter((term) => term === true).length;
    const values = pieces.reduce((sum, { size }) => sum + size, 0);
    const memory = new VectorMemory(kernels, 1 + slots.length + lanes + terms, values);
    this.#kernels = kernels;
    this.#options = options;
    this.#stretches = stretchesOf(pieces);
    this.trained = new TrainedVectors(values, slots, (count) => memory.vector(count));
    this.gradients = Array.from({ length: lanes }, () => memory.vector(values));
    this.#anchor = options.proximal === true ? memory.vector(values) : undefined;
    this.#correction = options.corrected === true ? memory.vector(values) : undefined;
    this.#terms = { anchored: false, corrected: false, mu: undefined };
  }

  /** @throws RangeError for a vector of another length than the graph has, with nothing changed */
  setTerms({ anchor, mu, correction }: RoundTerms): void {
    const own = [this.#anchor, this.#correction];
    [anchor, correction].forEach((given, i) => {
      const values = own[i]?.length ?? 0;
      if (given !== undefined && given.length !== values) {
        const name = i === 0 ? "anchor" : "correction";
        throw new RangeError(`the graph has ${values} values of ${name}, the vector has ${given.length}`);
      }
    });
    if (anchor !== undefined) this.#anchor?.set(anchor);
    if (correction !== undefined) this.#correction?.set(correction);
    this.#terms = { anchored: anchor !== undefined, corrected: correction !== undefined, mu };
  }

  /** @throws Error if the graph has a term that has not been given */
  requireTerms(): void {
    const { anchored, corrected, mu } = this.#terms;
    if (this.#anchor !== undefined && !anchored) throw new Error("input anchor.0 is missing");
    if (this.#anchor !== undefined && mu === undefined) throw new Error("input mu is missing");
    if (this.#correction !== undefined && !corrected) throw new Error("input correction.0 is missing");
  }

  /** Adds up the lanes' gradients. @returns their global norm */
  reduce(): number {
    const { gradients } = this;
    const [first, ...others] = gradients as readonly [Float32Array, ...Float32Array[]];
    const [total, count] = [first.byteOffset, first.length];
    // The last one on the way through the sum for its norm.
    const last = this.#anchor === undefined ? others.pop() : undefined;
    for (const other of others) this.#kernels.addInto(total, other.byteOffset, count);
    if (this.#anchor !== undefined) {
      const { weights } = this.trained.buffers;
      this.#kernels.pull(total, weights.byteOffset, this.#anchor.byteOffset, count, this.#terms.mu ?? 0);
    }
    return Math.sqrt(this.#kernels.squareSum(total, last?.byteOffset ?? 0, count));
  }

  /** Takes the sum of the gradients, of that norm, into the weights. @param step counts from 1 */
  update(lr: number, step: number, gradNorm: number): void {
    const options = this.#options;
    const scale = Math.min(1, options.clipNorm / (gradNorm + CLIP_EPS));
    const { weights, m, v } = this.trained.buffers;
    const [gradient] = this.gradients as readonly [Float32Array];
    for (const { begin, count, decay } of this.#stretches) {
      const at = (vector: Float32Array | undefined): number =>
        vector === undefined || vector.length === 0 ? 0 : vector.byteOffset + Float32Array.BYTES_PER_ELEMENT * begin;
      const weightDecay = decay ? options.weightDecay : 0;
      if (options.optimizer === "sgd") {
        const places = [at(weights), at(m), at(gradient), at(this.#correction), count] as const;
        this.#kernels.sgd(...places, scale, weightDecay, options.momentum, lr);
      } else {
        const factors = adamwFactors(options, lr, step, scale);
        this.#kernels.adamw(at(weights), at(m), at(v), at(gradient), count, ...factors, 1 - lr * weightDecay);
      }
    }
  }
}
