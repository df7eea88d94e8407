export interface BusMessage {
  subject: string;
  data: Uint8Array;
  /** Answers a request; does nothing for a plain message. */
  respond(data: Uint8Array): void;
}

/** At-most-once messages by subject ('*' one token, '>' the rest). */
export interface Bus {
  publish(subject: string, data: Uint8Array): void;
  /**
   * Calls the handler for each message until the signal aborts; members of one queue group share the messages.
   * A handler that throws is logged and does not end the subscription.
   */
  subscribe(
    subject: string,
    options: { queue?: string; signal: AbortSignal },
    handler: (message: BusMessage) => Promise<void> | void,
  ): void;
  /** Throws code "NO_RESPONDERS" or "TIMEOUT". */
  request(subject: string, data: Uint8Array, timeoutMs: number): Promise<Uint8Array>;
}
