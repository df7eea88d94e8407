import { credentials, Metadata, status, type ClientReadableStream, type ServiceError } from "@grpc/grpc-js";
import { AggregatorServiceClient } from "#proto/shoal/v1/aggregator_service.js";
import { FleetServiceClient } from "#proto/shoal/v1/fleet_service.js";
import { JobServiceClient } from "#proto/shoal/v1/job_service.js";
import { ModelServiceClient } from "#proto/shoal/v1/model_service.js";
import { TelemetryServiceClient } from "#proto/shoal/v1/telemetry_service.js";
import type { Context } from "./context.js";
import { CliError, EXIT } from "./exit.js";

/** Clients of all services. A service with several replicas is reached through any that answers. */
export interface Clients {
  readonly jobs: JobServiceClient;
  readonly fleet: FleetServiceClient;
  readonly models: ModelServiceClient;
  readonly telemetry: TelemetryServiceClient;
  /** Made when first used: a context of an earlier version names no address of it. */
  aggregator(): AggregatorServiceClient;
  close(): void;
}

/** Longest wait for an answer that is no stream. */
const DEADLINE_MS = 15_000;

/** A gRPC target that tries the addresses (host:port with a numeric or named host) in order. */
export function targetOf(addresses: readonly string[]): string {
  if (addresses.length === 0) throw new CliError("the context names no address of this service", EXIT.unavailable);
  const numeric = addresses.every((address) => /^\d+\.\d+\.\d+\.\d+:\d+$/.test(address));
  return numeric ? `ipv4:${addresses.join(",")}` : `dns:${addresses[0] ?? ""}`;
}

export function connectClients({ grpc }: Context): Clients {
  const insecure = credentials.createInsecure();
  const options = { "grpc.max_receive_message_length": 16 * 1024 * 1024 };
  const jobs = new JobServiceClient(targetOf(grpc.scheduler), insecure, options);
  const fleet = new FleetServiceClient(targetOf(grpc.registry), insecure, options);
  const models = new ModelServiceClient(targetOf(grpc.registry), insecure, options);
  const telemetry = new TelemetryServiceClient(targetOf(grpc.telemetry), insecure, options);
  let made: AggregatorServiceClient | undefined;
  const aggregator = (): AggregatorServiceClient =>
    (made ??= new AggregatorServiceClient(targetOf(grpc.aggregator), insecure, options));
  const close = (): void => [jobs, fleet, models, telemetry, made].forEach((client) => client?.close());
  return { jobs, fleet, models, telemetry, aggregator, close };
}

type UnaryMethod<Request, Response> = (
  request: Request,
  metadata: Metadata,
  options: { deadline: number },
  callback: (error: ServiceError | null, response: Response) => void,
) => unknown;

/**
 * One call with a deadline. Bind the method: `call(clients.jobs.get.bind(clients.jobs), request)`.
 * @throws the ServiceError
 */
export function call<Request, Response>(
  method: UnaryMethod<Request, Response>,
  request: Request,
  deadlineMs = DEADLINE_MS,
): Promise<Response> {
  return new Promise((resolve, reject) => {
    method(request, new Metadata(), { deadline: Date.now() + deadlineMs }, (error, response) => {
      if (error === null) resolve(response);
      else reject(error);
    });
  });
}

/** All pages of a list. */
export async function allPages<Page extends { nextPageToken: string }, Item>(
  page: (pageToken: string) => Promise<Page>,
  items: (page: Page) => readonly Item[],
): Promise<Item[]> {
  const all: Item[] = [];
  let token = "";
  do {
    const answer = await page(token);
    all.push(...items(answer));
    token = answer.nextPageToken;
  } while (token !== "");
  return all;
}

/** The messages of a stream until it ends; ends quietly when the signal aborts. */
export async function* streamed<Message>(
  stream: ClientReadableStream<Message>,
  signal?: AbortSignal,
): AsyncGenerator<Message, void, undefined> {
  const cancel = (): void => stream.cancel();
  signal?.addEventListener("abort", cancel, { once: true });
  try {
    for await (const message of stream) yield message as Message;
  } catch (error) {
    if (!(signal?.aborted === true && isServiceError(error) && error.code === status.CANCELLED)) throw error;
  } finally {
    signal?.removeEventListener("abort", cancel);
    stream.cancel();
  }
}

export function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && typeof error.code === "number" && "details" in error;
}
