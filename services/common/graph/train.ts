import { differentiate } from "./autodiff.js";
import { GraphBuilder } from "./builder.js";
import type { BatchShape } from "./families/family.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import { parameterLayout } from "./layout.js";
import { crossEntropy, meanLoss } from "./loss.js";
import { add, concat, div, min, norm, reshape } from "./ops.js";
import { adamw, type AdamWOptions } from "./optimizers/adamw.js";
import { unpackParameters } from "./parameters.js";

export interface TrainGraphOptions extends BatchShape, AdamWOptions {
  /** The gradient is scaled down to this Euclidean norm when it is longer. */
  readonly clipNorm: number;
}

/** As in torch.nn.utils.clip_grad_norm_. */
const CLIP_EPS = 1e-6;

/**
 * One whole training step (forward, backward, clipping by global norm, AdamW) as an ONNX model.
 *
 * Inputs: tokens int64 [b,t]; targets int64 [b,t], -100 for masked; weights, m, v float32 [p]; lr float32 [];
 * step float32 [], counted from 1. Outputs: loss [] (mean nats per unmasked token), grad_norm [] before clipping,
 * weights_out, m_out, v_out [p].
 */
export function buildTrainGraph(config: ModelConfig, options: TrainGraphOptions): Uint8Array {
  const g = new GraphBuilder();
  const family = familyOf(config);
  const layout = parameterLayout(config);
  const { batch, seqLen } = options;
  const tokens = g.input("tokens", "int64", [batch, seqLen]);
  const targets = g.input("targets", "int64", [batch, seqLen]);
  const weights = g.input("weights", "float32", [layout.total]);
  const m = g.input("m", "float32", [layout.total]);
  const v = g.input("v", "float32", [layout.total]);
  const lr = g.input("lr", "float32", []);
  const step = g.input("step", "float32", []);

  const parameters = unpackParameters(g, layout, weights);
  const logits = family.logits(g, config, parameters, family.hidden(g, config, parameters, tokens));
  const loss = crossEntropy(g, logits, targets);
  const tensors = [...parameters.values()];
  const gradients = differentiate(g, [{ value: logits, gradient: loss.gradient() }], tensors);
  const gradient = concat(
    g,
    gradients.map((part, i) => reshape(g, part, [layout.tensors[i]?.size ?? 0])),
    0,
  );
  const gradientNorm = norm(g, gradient);
  const gradientScale = min(
    g,
    g.scalar(1),
    div(g, g.scalar(options.clipNorm), add(g, gradientNorm, g.scalar(CLIP_EPS))),
  );
  const next = adamw(g, options, { weights, m, v }, { gradient, gradientScale }, { lr, step }, layout.decayed);

  g.output("loss", meanLoss(g, loss));
  g.output("grad_norm", gradientNorm);
  g.output("weights_out", next.weights);
  g.output("m_out", next.m);
  g.output("v_out", next.v);
  return g.encode();
}
