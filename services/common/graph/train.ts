import { rowSequence } from "./attention.js";
import { differentiate } from "./autodiff.js";
import { flatBlocks } from "./blocks.js";
import { GraphBuilder, type Value } from "./builder.js";
import type { BatchShape } from "./families/family.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import type { Piece } from "./layout.js";
import { loop } from "./loop.js";
import { countTargets, crossEntropy, meanLoss } from "./loss.js";
import { add, div, gather, min, mul, reshape, sqrt, squareSum, sub, sum } from "./ops.js";
import { type OptimizerOptions, optimizerOf } from "./optimizers/table.js";
import { inputPieces, packPiece } from "./parameters.js";
import { bindVariant, type BoundModel, type Variant, variantLayout } from "./variant.js";

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
const CLIP_EPS = 1e-6;

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

/** Token inputs, int64 [b, t]. */
interface BatchInputs {
  readonly tokens: Value;
  readonly targets: Value;
  readonly segments: Value | undefined;
}

/** Declares tokens, targets, and segments where rows hold several documents. */
export function inputBatch(g: GraphBuilder, { batch, seqLen }: BatchShape, packed: boolean): BatchInputs {
  const rows = (name: string): Value => g.input(name, "int64", [batch, seqLen]);
  return { tokens: rows("tokens"), targets: rows("targets"), segments: packed ? rows("segments") : undefined };
}

interface Learned {
  readonly lossSum: Value;
  readonly count: Value;
  /** Of the mean loss over the whole batch, piece by piece of the trainable vector. */
  readonly gradients: readonly Value[];
}

interface TrainedModel extends BoundModel {
  readonly pieceList: readonly Piece[];
  readonly recompute: boolean;
}

/** Forward and backward pass of a batch, or of a part of one with `whole` unmasked targets. */
function learn(
  g: GraphBuilder,
  config: ModelConfig,
  model: TrainedModel,
  { tokens, targets, segments }: BatchInputs,
  whole?: Value,
): Learned {
  const family = familyOf(config);
  const sequence = rowSequence(g, tokens, segments);
  const logits = family.logits(g, config, model.parameters, family.hidden(g, config, model.parameters, sequence));
  const loss = crossEntropy(g, logits, targets, whole);
  const seeds = [{ value: logits, gradient: loss.gradient() }];
  const byTensor = differentiate(g, seeds, [...model.tensors.values()], model.recompute);
  const named = new Map([...model.tensors.keys()].map((name, i) => [name, byTensor[i] as Value]));
  const gradients = model.pieceList.map((piece) => packPiece(g, piece, named));
  return { lossSum: loss.lossSum, count: loss.count, gradients };
}

/** The same in `parts` runs, one after the other, whose losses and gradients add up. */
function learnInParts(
  g: GraphBuilder,
  config: ModelConfig,
  model: TrainedModel,
  batch: BatchInputs,
  parts: number,
): Learned {
  const cut = (input: Value): Value => {
    const [rows, time] = input.shape as [number, number];
    return reshape(g, input, [parts, rows / parts, time]);
  };
  const [tokens, targets] = [cut(batch.tokens), cut(batch.targets)];
  const segments = batch.segments && cut(batch.segments);
  const count = countTargets(g, batch.targets);
  // Zeros that are made anew in each step: constants would take their place in memory for good.
  const zeros = model.pieces.map((piece) => mul(g, piece, g.scalar(0)));
  const [lossSum, ...gradients] = loop(g, parts, [g.scalar(0), ...zeros], (inner, run, [sumSoFar, ...soFar]) => {
    const part = (input: Value): Value => gather(inner, input, run);
    const inputs = { tokens: part(tokens), targets: part(targets), segments: segments && part(segments) };
    const learned = learn(inner, config, model, inputs, count);
    return [
      add(inner, sumSoFar as Value, learned.lossSum),
      ...learned.gradients.map((gradient, i) => add(inner, soFar[i] as Value, gradient)),
    ];
  });
  return { lossSum: lossSum as Value, count, gradients };
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

  const parts = options.accumulate ?? 1;
  if (options.batch % parts !== 0)
    throw new RangeError(`a batch of ${options.batch} cannot be cut into ${parts} parts`);
  const learned = parts === 1 ? learn(g, config, model, batch) : learnInParts(g, config, model, batch, parts);
  const plain = learned.gradients;
  const gradients = anchors === undefined ? plain : addProximalTerm(g, model.pieces, anchors, plain);
  const gradientNorm = globalNorm(g, gradients);
  const clipped = div(g, g.scalar(options.clipNorm), add(g, gradientNorm, g.scalar(CLIP_EPS)));
  const gradientScale = min(g, g.scalar(1), clipped);
  const one = g.scalar(1);
  const update = optimizer.prepare(g, { lr, step, gradientScale: corrections === undefined ? gradientScale : one });
  g.output("loss", meanLoss(g, learned));
  g.output("grad_norm", gradientNorm);
  pieces.forEach((piece, i) => {
    const [weights, gradient] = [model.pieces[i], gradients[i]] as [Value, Value];
    const correction = corrections?.[i];
    const old = [weights, ...slots.map((values) => values[i] as Value)];
    const next = flatBlocks(
      g,
      [gradient, ...(correction === undefined ? [] : [correction]), ...old],
      (inner, blocks) => {
        const [slope, ...rest] = blocks as [Value, ...Value[]];
        const drift = correction === undefined ? undefined : rest.shift();
        const direction = drift === undefined ? slope : add(inner, mul(inner, slope, gradientScale), drift);
        const [before, ...kept] = rest as [Value, ...Value[]];
        const state = update(inner, { weights: before, slots: kept }, direction, piece.decay);
        return [state.weights, ...state.slots];
      },
    );
    ["weights", ...optimizer.slots].forEach((name, k) => g.output(`${name}_out.${i}`, next[k] as Value));
  });
  return g.encode();
}
