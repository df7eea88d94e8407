import { type CallOptions, credentials, Metadata } from "@grpc/grpc-js";
import test, { type ExecutionContext } from "ava";
import { fromServiceError } from "#common/adapters/grpc/errors.js";
import { Handlers } from "#common/adapters/grpc/handlers.js";
import { GrpcServer } from "#common/adapters/grpc/server.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryEventLog } from "#common/adapters/memory/event-log.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import {
  Event,
  type QuerySeriesRequest,
  type QuerySeriesResponse,
  SeriesPoint,
  TelemetryServiceClient,
  TelemetryServiceService,
  type WatchEventsRequest,
  type WatchEventsResponse,
} from "#proto/shoal/v1/telemetry_service.js";
import { serveTelemetry } from "#services/telemetry/grpc.js";
import { TelemetryApi } from "#services/telemetry/telemetry-api.js";

async function serve(t: ExecutionContext) {
  const stopping = new AbortController();
  const clock = new SystemClock();
  const handlers = new Handlers({ log: new MemoryLog(), clock, metrics: new MemoryMetrics(), signal: stopping.signal });
  const events = new MemoryEventLog();
  const server = new GrpcServer();
  server.addService(TelemetryServiceService, serveTelemetry(new TelemetryApi(events), handlers));
  const port = await server.listen({ host: "127.0.0.1", port: 0 });
  const client = new TelemetryServiceClient(`127.0.0.1:${port}`, credentials.createInsecure());
  t.teardown(async () => {
    client.close();
    stopping.abort();
    await server.stop(500);
  });
  const query = (fields: Partial<QuerySeriesRequest>): Promise<QuerySeriesResponse> =>
    new Promise((resolve, reject) => {
      const request = { job: "tale", metrics: [], device: "", fromRound: 0, pageSize: 0, pageToken: "", ...fields };
      const options: Partial<CallOptions> = {};
      client.querySeries(request, new Metadata(), options, (error, response) => {
        if (error === null) resolve(response);
        else reject(fromServiceError(error));
      });
    });
  const watch = async (fields: Partial<WatchEventsRequest>, count = Infinity): Promise<string[]> => {
    const seen: string[] = [];
    const stream = client.watchEvents({ job: "", afterSeq: 0, pastOnly: true, ...fields });
    try {
      for await (const { event } of stream as AsyncIterable<WatchEventsResponse>) {
        seen.push(`${event?.seq ?? 0} ${event?.reason ?? ""}`);
        if (seen.length === count) break;
      }
    } catch (error) {
      throw fromServiceError(error);
    }
    return seen;
  };
  return { events, query, watch };
}

async function refused(t: ExecutionContext, pending: Promise<unknown>, field: string): Promise<void> {
  const error = fromServiceError(await t.throwsAsync(pending));
  t.is(error.code, "INVALID_ARGUMENT");
  t.is(error.violations[0]?.field, field);
}

const point = (round: number, metric: string, device = ""): SeriesPoint =>
  SeriesPoint.fromPartial({ job: "tale", round, metric, device, value: round });

test("series are filtered and paged while points are added", async (t) => {
  const { events, query } = await serve(t);
  for (let round = 1; round <= 5; round++) {
    await events.appendPoint(point(round, "train_loss"));
    await events.appendPoint(point(round, "train_loss", "a"));
    await events.appendPoint(point(round, "bytes_up"));
  }
  const outline = ({ points }: QuerySeriesResponse): string[] =>
    points.map(({ metric, round, device }) => `${metric} ${round} ${device}`.trim());
  t.is((await query({})).points.length, 15);
  t.deepEqual(outline(await query({ device: "a", fromRound: 4 })), ["train_loss 4 a", "train_loss 5 a"]);
  t.deepEqual(outline(await query({ metrics: ["bytes_up"], fromRound: 5 })), ["bytes_up 5"]);
  t.deepEqual(outline(await query({ job: "other" })), []);
  const filter = { metrics: ["bytes_up"], pageSize: 2 };
  const first = await query(filter);
  t.deepEqual(outline(first), ["bytes_up 1", "bytes_up 2"]);
  await events.appendPoint(point(6, "bytes_up"));
  const second = await query({ ...filter, pageToken: first.nextPageToken });
  t.deepEqual(outline(second), ["bytes_up 3", "bytes_up 4"]);
  const third = await query({ ...filter, pageToken: second.nextPageToken });
  t.deepEqual(outline(third), ["bytes_up 5", "bytes_up 6"]);
  t.is(third.nextPageToken, "");
  await refused(t, query({ pageToken: first.nextPageToken }), "page_token");
});

test("bad queries are refused by field", async (t) => {
  const { query } = await serve(t);
  await refused(t, query({ job: "" }), "job");
  await refused(t, query({ metrics: ["los"] }), "metrics");
  await refused(t, query({ fromRound: -1 }), "from_round");
  await refused(t, query({ pageSize: 10_001 }), "page_size");
  await refused(t, query({ pageSize: -1 }), "page_size");
  await refused(t, query({ pageToken: "nonsense" }), "page_token");
});

test("events are watched from a sequence, of one job, past or on", async (t) => {
  const { events, watch } = await serve(t);
  const append = (id: number, job: string): Promise<void> =>
    events.appendEvent(String(id), Event.fromPartial({ reason: `R${id}`, job }));
  await append(1, "tale");
  await append(2, "");
  await append(3, "saga");
  await append(4, "tale");
  t.deepEqual(await watch({}), ["1 R1", "2 R2", "3 R3", "4 R4"]);
  t.deepEqual(await watch({ job: "tale" }), ["1 R1", "4 R4"]);
  t.deepEqual(await watch({ afterSeq: 3 }), ["4 R4"]);
  t.deepEqual(await watch({ afterSeq: 99 }), []);
  const following = watch({ afterSeq: 3, pastOnly: false, job: "tale" }, 2);
  await append(5, "saga");
  await append(6, "tale");
  t.deepEqual(await following, ["4 R4", "6 R6"]);
  await refused(t, watch({ afterSeq: -1 }), "after_seq");
});
