/** A message as a stream stores it. */
export interface StoredMessage {
  subject: string;
  data: Uint8Array;
  seq: number;
  /** KV's mark of a removal, e.g. "DEL"; empty for others. */
  operation: string;
}

/** Header by which KV says what a message is; absent for a value. */
export const KV_OPERATION = "KV-Operation";
