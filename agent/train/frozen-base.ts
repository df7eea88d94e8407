import { CodedError } from "#common/adapters/coded-error.js";
import { viewFloats } from "#common/tensor/flat.js";
import type { FrozenBase } from "#proto/shoal/v1/job.js";
import type { FrozenTensors } from "../backend/backend.js";

const FLOAT_BYTES = 4;

/**
 * The frozen part of a model out of its blob, as views where possible: it may be most of the device's memory.
 * Throws code "BAD_DIGEST" if the blob is not what the task says of it.
 */
export function openFrozen(frozen: FrozenBase, bytes: Uint8Array): FrozenTensors {
  const floatsEnd = FLOAT_BYTES * frozen.floatValues;
  const scalesEnd = floatsEnd + FLOAT_BYTES * frozen.scaleValues;
  if (scalesEnd + frozen.packedBytes !== bytes.length) {
    const wanted = scalesEnd + frozen.packedBytes;
    throw new CodedError("BAD_DIGEST", `the frozen base has ${bytes.length} bytes where the task says ${wanted}`);
  }
  return {
    plain: viewFloats(bytes.subarray(0, floatsEnd)),
    scales: viewFloats(bytes.subarray(floatsEnd, scalesEnd)),
    packed: bytes.subarray(scalesEnd),
  };
}
