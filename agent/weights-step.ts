import { downCodec } from "#common/domain/down-link.js";
import { synchronisedRanges } from "#common/domain/fragment.js";
import { addEncoded } from "#common/tensor/encoded-step.js";
import { fromBytes, viewBytes } from "#common/tensor/flat.js";
import { gather, scatter } from "#common/tensor/stretches.js";
import type { RoundTask } from "#proto/shoal/v1/round.js";
import type { BlobStep } from "./fetch.js";

const FLOAT_BYTES = 4;

/**
 * How a round's weights come of those before them, where the control plane encoded the change; undefined where it did not, or in
 * a way that this agent does not know.
 */
export function weightsStep({ codec, delta, fragments, parameters }: RoundTask): BlobStep | undefined {
  const known = downCodec(codec);
  if (known === undefined || delta?.blob === undefined) return undefined;
  const { blob, baseDigest, partValues, fragment } = delta;
  const ranges = synchronisedRanges({ fragments, fragment });
  return {
    base: baseDigest,
    change: blob,
    apply(base, change) {
      if (base.length !== FLOAT_BYTES * parameters) return undefined;
      const weights = fromBytes(base);
      const values = ranges === undefined ? weights : gather(weights, ranges);
      if (!addEncoded(values, change, partValues, known)) return undefined;
      if (ranges !== undefined) scatter(values, ranges, weights);
      return viewBytes(weights);
    },
  };
}
