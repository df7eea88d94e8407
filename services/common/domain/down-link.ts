import type { CodecSpec } from "#proto/shoal/v1/job.js";
import { codecByName, type Codec } from "../tensor/codec.js";

/** Whether a job's weights travel to its devices as encoded changes. */
export function encodesDown(spec: Partial<Pick<CodecSpec, "down">> | undefined): boolean {
  const name = spec?.down ?? "";
  return name !== "" && name !== "none";
}

/** The codec of those changes; undefined if devices fetch whole weights, or nobody here knows it. */
export function downCodec(spec: Partial<Pick<CodecSpec, "down">> | undefined): Codec | undefined {
  return encodesDown(spec) ? codecByName(spec?.down ?? "") : undefined;
}
