/** "BLOB_MISSING", "LOG_CORRUPT": the stores do not hold what a resource names. "UNSUPPORTED": a name nobody knows here. */
export type FailureCode = "BLOB_MISSING" | "LOG_CORRUPT" | "UNSUPPORTED";

/** Work that cannot be done now; the controller tries again with backoff. */
export class AggregationError extends Error {
  constructor(
    readonly code: FailureCode,
    message: string,
  ) {
    super(message);
    this.name = "AggregationError";
  }
}
