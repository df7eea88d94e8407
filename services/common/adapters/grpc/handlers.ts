import {
  status,
  type handleClientStreamingCall,
  type handleServerStreamingCall,
  type handleUnaryCall,
  type Metadata,
  type ServerWritableStream,
} from "@grpc/grpc-js";
import type { Clock } from "../../ports/clock.js";
import type { Log } from "../../ports/log.js";
import type { Metrics } from "../../ports/metrics.js";
import { GrpcError, toGrpcError, toServiceError } from "./errors.js";

/** What a handler knows of its call. */
export interface CallContext {
  /** Aborts when the caller went away, the deadline passed, or the server stops. */
  signal: AbortSignal;
  peer: string;
  metadata: Metadata;
}

export interface HandlerOptions {
  log: Log;
  clock: Clock;
  metrics: Metrics;
  /** Time a call without response stream may take if its caller set no deadline. Default 30 s. */
  defaultDeadlineMs?: number;
  /** Aborts when the server stops: open streams end with UNAVAILABLE. */
  signal: AbortSignal;
}

interface AnyCall {
  getPeer(): string;
  getPath(): string;
  getDeadline(): Date | number;
  metadata: Metadata;
  on(event: "cancelled", listener: () => void): unknown;
}

/** Turns async functions into grpc-js handlers with cancellation, deadlines, rich errors, logging and metrics. */
export class Handlers {
  constructor(private readonly options: HandlerOptions) {}

  /** One request, one answer. */
  unary<Req, Res>(work: (request: Req, context: CallContext) => Promise<Res>): handleUnaryCall<Req, Res> {
    return (call, callback) => {
      void this.answer(call, (context) => work(call.request, context)).then(
        (response) => callback(null, response),
        (error: unknown) => callback(toServiceError(toGrpcError(error))),
      );
    };
  }

  /** A stream of requests, one answer. */
  clientStream<Req, Res>(
    work: (requests: AsyncIterable<Req>, context: CallContext) => Promise<Res>,
  ): handleClientStreamingCall<Req, Res> {
    return (call, callback) => {
      void this.answer(call, (context) => work(call as AsyncIterable<Req>, context)).then(
        (response) => callback(null, response),
        (error: unknown) => callback(toServiceError(toGrpcError(error))),
      );
    };
  }

  /** One request, a stream of answers; the generator is not asked for more than the caller takes. */
  serverStream<Req, Res>(
    work: (request: Req, context: CallContext) => AsyncIterable<Res>,
  ): handleServerStreamingCall<Req, Res> {
    return (call) => {
      void this.observe(call, false, async (context) => {
        for await (const response of work(call.request, context)) {
          if (context.signal.aborted) break;
          if (!call.write(response)) await drained(call, context.signal);
        }
        if (this.options.signal.aborted) throw new GrpcError(status.UNAVAILABLE, "the server is stopping; try again");
      }).then(
        () => call.end(),
        (error: unknown) => call.emit("error", toServiceError(toGrpcError(error))),
      );
    };
  }

  private answer<Res>(call: AnyCall, work: (context: CallContext) => Promise<Res>): Promise<Res> {
    return this.observe(call, true, work);
  }

  private async observe<Res>(
    call: AnyCall,
    enforceDefault: boolean,
    work: (context: CallContext) => Promise<Res>,
  ): Promise<Res> {
    const { clock, log, metrics } = this.options;
    const startMs = clock.monotonicMs();
    const gone = new AbortController();
    call.on("cancelled", () => gone.abort());
    const context = {
      signal: AbortSignal.any([gone.signal, this.options.signal]),
      peer: call.getPeer(),
      metadata: call.metadata,
    };
    const method = call.getPath();
    let outcome: status = status.OK;
    try {
      const working = work(context);
      return await (enforceDefault && !hasDeadline(call) ? this.within(working, gone) : working);
    } catch (error) {
      const answer = toGrpcError(error);
      outcome = gone.signal.aborted && answer.status === status.INTERNAL ? status.CANCELLED : answer.status;
      if (outcome === status.INTERNAL) log.error("a call failed", { method, error: describe(error) });
      else log.debug("a call was refused", { method, status: status[outcome], reason: answer.message });
      throw answer;
    } finally {
      metrics
        .counter("shoal_grpc_requests_total", "gRPC calls by method and status.", ["method", "status"])
        .add(1, { method, status: status[outcome] });
      metrics
        .histogram("shoal_grpc_duration_seconds", "Duration of gRPC calls.", DURATIONS, ["method"])
        .observe((clock.monotonicMs() - startMs) / 1000, { method });
    }
  }

  private async within<Res>(working: Promise<Res>, gone: AbortController): Promise<Res> {
    const limitMs = this.options.defaultDeadlineMs ?? 30_000;
    const done = new AbortController();
    const timeout = this.options.clock.sleep(limitMs, done.signal).then(() => {
      if (done.signal.aborted) return working;
      gone.abort();
      throw new GrpcError(status.DEADLINE_EXCEEDED, `no answer in the server's default deadline of ${limitMs} ms`);
    });
    timeout.catch(() => undefined);
    working.catch(() => undefined);
    try {
      return await Promise.race([working, timeout]);
    } finally {
      done.abort();
    }
  }
}

const DURATIONS = [0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60];

function hasDeadline(call: AnyCall): boolean {
  const deadline = call.getDeadline();
  return deadline instanceof Date || Number.isFinite(deadline);
}

function describe(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

function drained<Req, Res>(call: ServerWritableStream<Req, Res>, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      call.off("drain", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    call.on("drain", done);
    signal.addEventListener("abort", done);
    if (signal.aborted) done();
  });
}
