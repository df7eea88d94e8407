import { flatBlocks } from "./blocks.js";
import { GraphBuilder, type Model, type Value } from "./builder.js";
import { encodeModel } from "./encoding.js";
import type { BatchShape } from "./families/family.js";
import { type ModelConfig, toHuggingFaceConfig } from "./config.js";
import type { Piece } from "./layout.js";
import { inputBatch, learn } from "./learning.js";
import { meanLoss } from "./loss.js";
import { add, div, min, mul, sqrt, squareSum, sub, sum } from "./ops.js";
import type { Update } from "./optimizers/optimizer.js";
import { type OptimizerOptions, optimizerOf } from "./optimizers/table.js";
import { inputPieces } from "./parameters.js";
import { bindVariant, type Variant, variantLayout } from "./variant.js";

interface StepOptions extends BatchShape {
  /** The gradient is scaled down to this Euclidean norm when it is longer. */
  readonly clipNorm: number;
  /** What is trained; all by default. */
  readonly variant?: Variant;
  /** Several documents in a row: an input `segments` tells them apart. */
  readonly packed?: boolean;
  /** The batch is taken in so many equal parts one after the other; the result is the same, in less memory. */
  readonly accumulate?: number;
  /** Blocks are computed again in the backward pass: a third more work, and the memory of one block's values. */
  readonly recompute?: boolean;
  /** FedProx: inputs `anchor.i` and `mu`. */
  readonly proximal?: boolean;
  /** SCAFFOLD: inputs `correction.i`. With SGD only. */
  readonly corrected?: boolean;
}

export type TrainGraphOptions = StepOptions & OptimizerOptions;

/** As in torch.nn.utils.clip_grad_norm_. */
export const CLIP_EPS = 1e-6;
/** Under this key a graph's file says what it was built from: a device may build the same step in another form. */
export const STEP_METADATA = "shoal.step";

/** Euclidean norm over all pieces together, a scalar. */
function globalNorm(g: GraphBuilder, gradients: readonly Value[]): Value {
  return sqrt(
    g,
    sum(
      g,
      gradients.map((gradient) => squareSum(g, gradient)),
    ),
  );
}

/** FedProx (Li et al. 2020): mu (w - w_global), the gradient of mu/2 ||w - w_global||^2, on top of each gradient. */
function addProximalTerm(
  g: GraphBuilder,
  pieces: readonly Value[],
  anchors: readonly Value[],
  gradients: readonly Value[],
): Value[] {
  const mu = g.input("mu", "float32", []);
  return gradients.map((gradient, i) => {
    const [weights, anchor] = [pieces[i], anchors[i]] as [Value, Value];
    return add(g, gradient, mul(g, sub(g, weights, anchor), mu));
  });
}

/** What an update needs of each piece, and the factor of clipping. */
interface Updated {
  readonly gradients: readonly Value[];
  readonly weights: readonly Value[];
  /** Slot by slot, piece by piece. */
  readonly slots: readonly (readonly Value[])[];
  readonly corrections: readonly Value[] | undefined;
  readonly gradientScale: Value;
}

/** Emits the optimizer for pieces, and their new weights and slots as outputs `weights_out.i`, `m_out.i`, `v_out.i`. */
function emitUpdates(
  g: GraphBuilder,
  pieces: readonly Pick<Piece, "decay">[],
  slotNames: readonly string[],
  { gradients, weights, slots, corrections, gradientScale }: Updated,
  update: Update,
): void {
  pieces.forEach(({ decay }, i) => {
    const correction = corrections?.[i];
    const old = [weights[i] as Value, ...slots.map((values) => values[i] as Value)];
    const inputs = [gradients[i] as Value, ...(correction === undefined ? [] : [correction]), ...old];
    const next = flatBlocks(g, inputs, (inner, blocks) => {
      const [slope, ...rest] = blocks as [Value, ...Value[]];
      const drift = correction === undefined ? undefined : rest.shift();
      const direction = drift === undefined ? slope : add(inner, mul(inner, slope, gradientScale), drift);
      const [before, ...kept] = rest as [Value, ...Value[]];
      const state = update(inner, { weights: before, slots: kept }, direction, decay);
      return [state.weights, ...state.slots];
    });
    ["weights", ...slotNames].forEach((name, k) => g.output(`${name}_out.${i}`, next[k] as Value));
  });
}

/**
 * One whole training step (forward, backward, clipping by global norm, optimizer) as an ONNX model.
 *
 * Inputs: tokens int64 [b,t]; targets int64 [b,t], -100 for masked; the trainable vector as pieces weights.i with the
 * optimizer's m.i and v.i as far as it has them; the frozen one as frozen.i; lr float32 []; step float32 [], counted from
 * 1. By option: segments int64 [b,t]; anchor.i and mu []; correction.i. Outputs: loss [] (mean nats per unmasked token),
 * grad_norm [] before clipping, and the pieces weights_out.i, m_out.i, v_out.i.
 *
 * SCAFFOLD (Karimireddy et al. 2020) steps along the clipped gradient plus the correction c - c_k.
 * @throws RangeError for a variant that does not fit the model, and for corrections with AdamW, which has no such rule
 */
export function buildTrainGraph(config: ModelConfig, options: TrainGraphOptions): Uint8Array {
  return encodeModel(trainModel(config, options), {
    [STEP_METADATA]: JSON.stringify({ config: toHuggingFaceConfig(config), options }),
  });
}

/** The same before it is written, with the shapes of all its values. */
export function trainModel(config: ModelConfig, options: TrainGraphOptions): Model {
  if (options.corrected === true && options.optimizer !== "sgd") {
    throw new RangeError("SCAFFOLD's corrections need SGD: its control variates are sums of plain gradients");
  }
  const g = new GraphBuilder();
  const layout = variantLayout(config, options.variant);
  const { pieces } = layout.trainable;
  const batch = inputBatch(g, options, options.packed === true);
  const model = { ...bindVariant(g, layout), pieceList: pieces, recompute: options.recompute === true };
  const optimizer = optimizerOf(options);
  const slots = optimizer.slots.map((slot) => inputPieces(g, layout.trainable, slot));
  const lr = g.input("lr", "float32", []);
  const step = g.input("step", "float32", []);
  const anchors = options.proximal === true ? inputPieces(g, layout.trainable, "anchor") : undefined;
  const corrections = options.corrected === true ? inputPieces(g, layout.trainable, "correction") : undefined;

  const learned = learn(g, config, model, batch, options.accumulate ?? 1);
  const plain = learned.gradients;
  const gradients = anchors === undefined ? plain : addProximalTerm(g, model.pieces, anchors, plain);
  const gradientNorm = globalNorm(g, gradients);
  const clipped = div(g, g.scalar(options.clipNorm), add(g, gradientNorm, g.scalar(CLIP_EPS)));
  const gradientScale = min(g, g.scalar(1), clipped);
  const one = g.scalar(1);
  const update = optimizer.prepare(g, { lr, step, gradientScale: corrections === undefined ? gradientScale : one });
  g.output("loss", meanLoss(g, learned));
  g.output("grad_norm", gradientNorm);
  const updated = { gradients, weights: model.pieces, slots, corrections, gradientScale };
  emitUpdates(g, pieces, optimizer.slots, updated, update);
  return g.model();
}
