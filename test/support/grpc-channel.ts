import { Client, credentials, Metadata, status, type CallOptions } from "@grpc/grpc-js";
import { fromServiceError, GrpcError } from "#common/adapters/grpc/errors.js";
import { MAX_MESSAGE_BYTES } from "#common/adapters/grpc/server.js";

/** A method as ts-proto describes it, e.g. JobServiceService.getJob. */
export interface Method<Req, Res> {
  path: string;
  requestSerialize: (value: Req) => Buffer;
  responseDeserialize: (value: Buffer) => Res;
}

export interface CallSettings {
  /** Milliseconds the call may take; the channel's default for calls without a response stream. */
  deadlineMs?: number;
  /** Cancels the call. */
  signal?: AbortSignal;
}

/**
 * Calls to one service at any of its addresses. Every unary call has a deadline; one that cannot connect is tried at the
 * next address. Failures are thrown as GrpcError with their field violations.
 */
export class GrpcChannel {
  private readonly clients: Client[];
  private current = 0;

  /** @param addresses host:port of the replicas */
  constructor(
    addresses: readonly string[],
    private readonly defaultDeadlineMs = 10_000,
  ) {
    this.clients = addresses.map(
      (address) =>
        new Client(address, credentials.createInsecure(), {
          "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
          "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
          "grpc.initial_reconnect_backoff_ms": 200,
          "grpc.max_reconnect_backoff_ms": 2000,
        }),
    );
  }

  /** One request, one answer. */
  unary<Req, Res>(method: Method<Req, Res>, request: Req, settings: CallSettings = {}): Promise<Res> {
    return this.atAnyAddress((client) => {
      return new Promise((resolve, reject) => {
        const call = client.makeUnaryRequest(
          method.path,
          method.requestSerialize,
          method.responseDeserialize,
          request,
          new Metadata(),
          this.options(settings),
          answer(resolve, reject),
        );
        onAbort(settings.signal, () => call.cancel());
      });
    });
  }

  /** One request, a stream of answers: without a deadline unless one is given. */
  async *serverStream<Req, Res>(
    method: Method<Req, Res>,
    request: Req,
    settings: CallSettings = {},
  ): AsyncGenerator<Res, void, undefined> {
    const call = this.client().makeServerStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      new Metadata(),
      settings.deadlineMs === undefined ? {} : this.options(settings),
    );
    onAbort(settings.signal, () => call.cancel());
    try {
      for await (const response of call) yield response as Res;
    } catch (error) {
      const failure = fromServiceError(error);
      if (settings.signal?.aborted === true && failure.status === status.CANCELLED) return;
      this.rotateAfter(failure);
      throw failure;
    } finally {
      call.cancel();
    }
  }

  /** A stream of requests, one answer; requests are taken no faster than they are sent. */
  clientStream<Req, Res>(
    method: Method<Req, Res>,
    requests: AsyncIterable<Req> | Iterable<Req>,
    settings: CallSettings = {},
  ): Promise<Res> {
    return new Promise((resolve, reject) => {
      const call = this.client().makeClientStreamRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        new Metadata(),
        this.options(settings),
        answer(resolve, reject),
      );
      onAbort(settings.signal, () => call.cancel());
      const send = async (): Promise<void> => {
        for await (const request of requests) {
          if (call.destroyed) return;
          if (!call.write(request)) await writable(call);
        }
        call.end();
      };
      send().catch((error: unknown) => {
        call.cancel();
        reject(fromServiceError(error));
      });
    });
  }

  close(): void {
    for (const client of this.clients) client.close();
  }

  private options(settings: CallSettings): CallOptions {
    return { deadline: Date.now() + (settings.deadlineMs ?? this.defaultDeadlineMs) };
  }

  private client(): Client {
    const client = this.clients[this.current % this.clients.length];
    if (client === undefined) throw new GrpcError(status.UNAVAILABLE, "no address of the service is known");
    return client;
  }

  private async atAnyAddress<Res>(call: (client: Client) => Promise<Res>): Promise<Res> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await call(this.client());
      } catch (error) {
        const failure = fromServiceError(error);
        if (!this.rotateAfter(failure) || attempt >= this.clients.length) throw failure;
      }
    }
  }

  /** Goes to the next address if the call never left: what did leave is not ours to repeat. */
  private rotateAfter(failure: GrpcError): boolean {
    const neverSent = failure.status === status.UNAVAILABLE && failure.message.includes("No connection established");
    if (neverSent) this.current += 1;
    return neverSent;
  }
}

function answer<Res>(resolve: (response: Res) => void, reject: (error: Error) => void) {
  return (error: Error | null, response?: Res): void => {
    if (error !== null) reject(fromServiceError(error));
    else if (response === undefined) reject(new GrpcError(status.INTERNAL, "the answer is empty"));
    else resolve(response);
  };
}

function onAbort(signal: AbortSignal | undefined, cancel: () => void): void {
  if (signal?.aborted === true) cancel();
  else signal?.addEventListener("abort", cancel, { once: true });
}

/** Resolves when a stream takes writes again, or never will. */
function writable(call: { once(event: "drain" | "close" | "error", listener: () => void): unknown }): Promise<void> {
  return new Promise((resolve) => {
    for (const event of ["drain", "close", "error"] as const) call.once(event, () => resolve());
  });
}
