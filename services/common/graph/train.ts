import { differentiate } from "./autodiff.js";
import { GraphBuilder, type Value } from "./builder.js";
import type { BatchShape } from "./families/family.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import { parameterLayout } from "./layout.js";
import { crossEntropy, meanLoss } from "./loss.js";
import { add, div, min, sqrt, squareSum, sum } from "./ops.js";
import { adamw, type AdamWOptions } from "./optimizers/adamw.js";
import { inputPieces, packPiece, unpackTensors } from "./parameters.js";

export interface TrainGraphOptions extends BatchShape, AdamWOptions {
  /** The gradient is scaled down to this Euclidean norm when it is longer. */
  readonly clipNorm: number;
}

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

/**
 * One whole training step (forward, backward, clipping by global norm, AdamW) as an ONNX model.
 *
 * Inputs: tokens int64 [b,t]; targets int64 [b,t], -100 for masked; the flat vectors as pieces weights.i, m.i, v.i;
 * lr float32 []; step float32 [], counted from 1. Outputs: loss [] (mean nats per unmasked token), grad_norm [] before
 * clipping, and the pieces weights_out.i, m_out.i, v_out.i.
 */
export function buildTrainGraph(config: ModelConfig, options: TrainGraphOptions): Uint8Array {
  const g = new GraphBuilder();
  const family = familyOf(config);
  const layout = parameterLayout(config);
  const { batch, seqLen } = options;
  const tokens = g.input("tokens", "int64", [batch, seqLen]);
  const targets = g.input("targets", "int64", [batch, seqLen]);
  const weights = inputPieces(g, layout, "weights");
  const m = inputPieces(g, layout, "m");
  const v = inputPieces(g, layout, "v");
  const lr = g.input("lr", "float32", []);
  const step = g.input("step", "float32", []);

  const tensors = unpackTensors(g, layout, weights);
  const logits = family.logits(g, config, tensors, family.hidden(g, config, tensors, tokens));
  const loss = crossEntropy(g, logits, targets);
  const seeds = [{ value: logits, gradient: loss.gradient() }];
  const byTensor = differentiate(g, seeds, [...tensors.values()]);
  const named = new Map([...tensors.keys()].map((name, i) => [name, byTensor[i] as Value]));
  const gradients = layout.pieces.map((piece) => packPiece(g, piece, named));

  const gradientNorm = globalNorm(g, gradients);
  const gradientScale = min(
    g,
    g.scalar(1),
    div(g, g.scalar(options.clipNorm), add(g, gradientNorm, g.scalar(CLIP_EPS))),
  );
  const update = adamw(g, options, { lr, step, gradientScale });
  g.output("loss", meanLoss(g, loss));
  g.output("grad_norm", gradientNorm);
  layout.pieces.forEach((piece, i) => {
    const [w, first, second, gradient] = [weights[i], m[i], v[i], gradients[i]] as [Value, Value, Value, Value];
    const next = update({ weights: w, m: first, v: second }, gradient, piece.decay);
    g.output(`weights_out.${i}`, next.weights);
    g.output(`m_out.${i}`, next.m);
    g.output(`v_out.${i}`, next.v);
  });
  return g.encode();
}
