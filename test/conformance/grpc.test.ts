import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";
import { status } from "@grpc/grpc-js";
import test, { type ExecutionContext } from "ava";
import { GrpcChannel } from "../support/grpc-channel.js";
import { DescriptorSet } from "#common/adapters/grpc/descriptor-set.js";
import { failedPrecondition, invalidArgument, notFound, type GrpcError } from "#common/adapters/grpc/errors.js";
import { Handlers } from "#common/adapters/grpc/handlers.js";
import { loadDescriptors } from "#common/adapters/grpc/reflection.js";
import { GrpcServer } from "#common/adapters/grpc/server.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { ModelServiceService, type ImportRequest } from "#proto/shoal/v1/model_service.js";
import {
  QuerySeriesResponse,
  TelemetryServiceService,
  WatchEventsResponse,
} from "#proto/shoal/v1/telemetry_service.js";
import { freePort } from "#test/support/servers.js";

const run = promisify(execFile);
const METHOD = "/shoal.v1.TelemetryService/QuerySeries";
const ask = { job: "", metrics: [], device: "", fromRound: 0, pageSize: 0, pageToken: "" };

interface Served {
  channel: GrpcChannel;
  address: string;
  log: MemoryLog;
  metrics: MemoryMetrics;
  cancelled: () => number;
  sent: () => number;
  stop: AbortController;
}

/** A server whose answers depend on the job asked for. */
async function serve(t: ExecutionContext): Promise<Served> {
  const log = new MemoryLog();
  const metrics = new MemoryMetrics();
  const stop = new AbortController();
  const handlers = new Handlers({
    log,
    clock: new SystemClock(),
    metrics,
    defaultDeadlineMs: 300,
    signal: stop.signal,
  });
  let cancelled = 0;
  let sent = 0;
  const server = new GrpcServer();
  server.addService(TelemetryServiceService, {
    querySeries: handlers.unary(async (request: { job: string }, { signal }) => {
      if (request.job === "bad")
        throw invalidArgument([
          { field: "spec.rounds", value: "-1", description: "must be positive" },
          { field: "spec.näme", value: "", description: "is required" },
        ]);
      if (request.job === "absent") throw notFound("TrainingJob", "absent");
      if (request.job === "early") throw failedPrecondition("the job has begun");
      if (request.job === "outage") throw Object.assign(new Error("timeout"), { code: "TIMEOUT" });
      if (request.job === "bug") throw new TypeError("secret detail");
      if (request.job === "slow")
        await new Promise<void>((resolve) =>
          signal.addEventListener("abort", () => {
            cancelled += 1;
            resolve();
          }),
        );
      return QuerySeriesResponse.fromPartial({ points: [{ job: request.job }] });
    }),
    watchEvents: handlers.serverStream(async function* (request: { afterSeq: number }, { signal }) {
      try {
        for (let seq = request.afterSeq + 1; !signal.aborted; seq += 1) {
          sent += 1;
          yield WatchEventsResponse.fromPartial({ event: { seq, message: "x".repeat(10_000) } });
          await new Promise((resolve) => setImmediate(resolve));
        }
      } finally {
        cancelled += 1;
      }
    }),
  });
  const port = await server.listen({ host: "127.0.0.1", port: 0 });
  server.setServing(true);
  const address = `127.0.0.1:${port}`;
  const channel = new GrpcChannel([address]);
  t.teardown(async () => {
    channel.close();
    await server.stop(500);
  });
  return { channel, address, log, metrics, cancelled: () => cancelled, sent: () => sent, stop };
}

async function refused(t: ExecutionContext, promise: Promise<unknown>): Promise<GrpcError> {
  return await t.throwsAsync<GrpcError>(promise);
}

async function until(what: () => boolean): Promise<boolean> {
  for (let turn = 0; turn < 6000 && !what(); turn += 1) await new Promise((resolve) => setTimeout(resolve, 10));
  return what();
}

test("errors arrive with their status and field violations", async (t) => {
  const { channel, log, metrics } = await serve(t);
  const call = (job: string): Promise<GrpcError> =>
    refused(t, channel.unary(TelemetryServiceService.querySeries, { ...ask, job }));
  const bad = await call("bad");
  t.is(bad.code, "INVALID_ARGUMENT");
  t.deepEqual(bad.violations, [
    { field: "spec.rounds", description: "must be positive (is -1)" },
    { field: "spec.näme", description: "is required" },
  ]);
  t.is((await call("absent")).message, 'there is no TrainingJob named "absent"');
  t.is((await call("early")).status, status.FAILED_PRECONDITION);
  t.is((await call("outage")).status, status.UNAVAILABLE);
  const bug = await call("bug");
  t.is(bug.status, status.INTERNAL);
  t.false(bug.message.includes("secret"));
  t.true(JSON.stringify(log.lines).includes("secret detail"));
  t.is(metrics.value("shoal_grpc_requests_total", { method: METHOD, status: "INTERNAL" }), 1);
});

test("a call ends at its deadline, at the server's default one, or when it is cancelled, and the handler hears of it", async (t) => {
  const { channel, address, cancelled } = await serve(t);
  const slow = { ...ask, job: "slow" };
  // Connecting is not part of what is measured.
  await channel.unary(TelemetryServiceService.querySeries, { ...ask, job: "quick" });
  const byCaller = channel.unary(TelemetryServiceService.querySeries, slow, { deadlineMs: 200 });
  t.is((await refused(t, byCaller)).status, status.DEADLINE_EXCEEDED);
  const stop = new AbortController();
  const byAbort = channel.unary(TelemetryServiceService.querySeries, slow, { signal: stop.signal });
  setTimeout(() => stop.abort(), 150);
  t.is((await refused(t, byAbort)).status, status.CANCELLED);
  t.true(await until(() => cancelled() === 2));
  // A foreign client that sets no deadline.
  const { stderr } = await refusedBuf(address, METHOD, '{"job":"slow"}');
  t.true(stderr.includes("deadline_exceeded"), stderr);
  t.is(cancelled(), 3);
});

test("a stream is not produced faster than it is read, and ends with its reader", async (t) => {
  const { channel, cancelled, sent } = await serve(t);
  const seen: number[] = [];
  for await (const { event } of channel.serverStream(TelemetryServiceService.watchEvents, {
    job: "",
    afterSeq: 4,
    pastOnly: false,
  })) {
    seen.push(event?.seq ?? 0);
    if (seen.length === 1) await new Promise((resolve) => setTimeout(resolve, 300));
    if (seen.length === 3) break;
  }
  t.deepEqual(seen, [5, 6, 7]);
  t.true(await until(() => cancelled() === 1));
  t.true(sent() < 2000, `${sent()} messages of 10 kB were made for a reader that stood still`);
});

test("a stopping server ends its streams with UNAVAILABLE", async (t) => {
  const { channel, stop } = await serve(t);
  const reading = (async () => {
    for await (const _ of channel.serverStream(TelemetryServiceService.watchEvents, {
      job: "",
      afterSeq: 0,
      pastOnly: false,
    }))
      stop.abort();
  })();
  t.is((await refused(t, reading)).status, status.UNAVAILABLE);
});

test("a client goes to the next address when one does not answer the door", async (t) => {
  const { address } = await serve(t);
  const channel = new GrpcChannel([`127.0.0.1:${await freePort()}`, address]);
  t.is((await channel.unary(TelemetryServiceService.querySeries, { ...ask, job: "j" })).points[0]?.job, "j");
  channel.close();
});

test("requests are streamed to a handler", async (t) => {
  const handlers = new Handlers({
    log: new MemoryLog(),
    clock: new SystemClock(),
    metrics: new MemoryMetrics(),
    signal: new AbortController().signal,
  });
  const server = new GrpcServer();
  server.addService(ModelServiceService, {
    import: handlers.clientStream(async (requests: AsyncIterable<ImportRequest>) => {
      let bytes = 0;
      for await (const { part } of requests) if (part?.$case === "piece") bytes += part.value.data.length;
      return { model: undefined, bytes: t.is(bytes, 5_000_000) };
    }),
    export: handlers.serverStream(() => {
      throw notFound("Model", "x");
    }),
    listModels: handlers.unary(() => Promise.reject(notFound("Model", "x"))),
    getModel: handlers.unary(() => Promise.reject(notFound("Model", "x"))),
    applyDataset: handlers.unary(() => Promise.reject(notFound("Dataset", "x"))),
    listDatasets: handlers.unary(() => Promise.reject(notFound("Dataset", "x"))),
  });
  const channel = new GrpcChannel([`127.0.0.1:${await server.listen({ host: "127.0.0.1", port: 0 })}`]);
  const pieces = Array.from({ length: 10 }, (): ImportRequest => {
    const value = { fileName: "f", fileSizeBytes: 5_000_000, data: Buffer.alloc(500_000) };
    return { part: { $case: "piece", value } };
  });
  await channel.clientStream(ModelServiceService.import, pieces);
  const exporting = (async () => {
    for await (const _ of channel.serverStream(ModelServiceService.export, { name: "x", form: "", seqLen: 0 }))
      t.fail();
  })();
  t.is((await refused(t, exporting)).status, status.NOT_FOUND);
  channel.close();
  await server.stop(500);
});

function buf(address: string, ...args: string[]): Promise<{ stdout: string; stderr: string }> {
  return run("node_modules/.bin/buf", [
    "curl",
    "--protocol",
    "grpc",
    "--http2-prior-knowledge",
    ...args,
    `http://${address}`,
  ]);
}

async function refusedBuf(address: string, method: string, data: string): Promise<{ stderr: string }> {
  const url = `http://${address}${method}`;
  try {
    const args = ["curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", data, url];
    await run("node_modules/.bin/buf", args);
    return { stderr: "" };
  } catch (error) {
    return { stderr: error instanceof Error && "stderr" in error ? String(error.stderr) : String(error) };
  }
}

test("a foreign client needs nothing but reflection", async (t) => {
  const { address } = await serve(t);
  t.deepEqual((await buf(address, "--list-services")).stdout.trim().split("\n"), [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "shoal.v1.TelemetryService",
  ]);
  const { stdout } = await buf(`${address}${METHOD}`, "-d", '{"job":"j"}');
  t.deepEqual(JSON.parse(stdout), { points: [{ job: "j" }] });
  const health = await buf(`${address}/grpc.health.v1.Health/Check`, "-d", '{"service":"shoal.v1.TelemetryService"}');
  t.deepEqual(JSON.parse(health.stdout), { status: "SERVING" });
  t.true((await refusedBuf(address, METHOD, '{"job":"bad"}')).stderr.includes("google.rpc.BadRequest"));
});

test("the descriptors are complete and those of today's proto files", async (t) => {
  const descriptors = await loadDescriptors();
  t.deepEqual(descriptors.missingImports(), []);
  for (const symbol of [
    "shoal.v1.JobService",
    "shoal.v1.JobService.Apply",
    "shoal.v1.WATCH_EVENT_TYPE_PUT",
    "google.protobuf.Struct",
  ])
    t.true((descriptors.bySymbol(symbol)?.length ?? 0) > 0, symbol);
  t.is(descriptors.bySymbol("shoal.v1.Nothing"), undefined);
  t.is(descriptors.byFilename("shoal/v1/job.proto")?.length, 3);
  const built = async (...input: string[]): Promise<Buffer> =>
    (await run("node_modules/.bin/buf", ["build", ...input, "-o", "-"], { encoding: "buffer" })).stdout;
  t.is(Buffer.compare(await built(), await readFile("proto/gen/descriptors.binpb")), 0, "run npm run generate");
  const own = "services/common/adapters/grpc/protos";
  t.is(Buffer.compare(await built(own), await readFile(`${own}/descriptors.binpb`)), 0);
  t.throws(() => new DescriptorSet(Uint8Array.of(10, 200, 1)));
});
