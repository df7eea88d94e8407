import { answer, type Answer, invalid } from "#common/domain/answer.js";
import { pageToken, parsePage } from "#common/domain/pages.js";
import { nameViolations, type Violation } from "#common/domain/resources.js";
import type { EventLog } from "#common/ports/event-log.js";
import type {
  Event,
  QuerySeriesRequest,
  QuerySeriesResponse,
  WatchEventsRequest,
  WatchEventsResponse,
} from "#proto/shoal/v1/telemetry_service.js";
import { matchesFilter, METRICS } from "./series.js";

const PAGES = { max: 10_000, fallback: 1000 };

/** TelemetryService without gRPC. Any replica answers. */
export class TelemetryApi {
  constructor(private readonly events: EventLog) {}

  /** Points of a job in the order in which they were written; a job without points, known or not, has none. */
  async querySeries(request: QuerySeriesRequest): Promise<Answer<QuerySeriesResponse>> {
    const { job, metrics, device, fromRound } = request;
    // A token holds the place in all points of the job, which only grow at the end.
    const scope = `series ${JSON.stringify([job, [...metrics].sort(), device, fromRound])}`;
    const parsed = parsePage(request.pageSize, request.pageToken, scope, PAGES);
    const violations = [...seriesViolations(request), ...(parsed.ok ? [] : parsed.violations)];
    if (!parsed.ok || violations.length > 0) return invalid(...violations);
    const all = await this.events.points(job);
    const points: QuerySeriesResponse["points"] = [];
    for (let place = Number(parsed.page.after); place < all.length; place++) {
      const point = all[place];
      if (point === undefined || !matchesFilter(point, { metrics, device, fromRound })) continue;
      if (points.length === parsed.page.size) {
        return answer({ points, nextPageToken: pageToken(scope, String(place)) });
      }
      points.push(point);
    }
    return answer({ points, nextPageToken: "" });
  }

  /** Past events, then, unless only those are wanted, new ones until the signal aborts. */
  watchEvents(request: WatchEventsRequest, signal: AbortSignal): Answer<AsyncIterable<WatchEventsResponse>> {
    const { job, afterSeq, pastOnly } = request;
    if (afterSeq < 0) {
      const description = "must be the sequence of an event, or 0 for all";
      return invalid({ field: "after_seq", value: String(afterSeq), description });
    }
    return answer(ofJob(this.events.events({ afterSeq, pastOnly, signal }), job));
  }
}

async function* ofJob(events: AsyncIterable<Event>, job: string): AsyncGenerator<WatchEventsResponse> {
  for await (const event of events) {
    if (job === "" || event.job === job) yield { event };
  }
}

function seriesViolations({ job, metrics, fromRound }: QuerySeriesRequest): Violation[] {
  const violations = nameViolations("job", job);
  const known: readonly string[] = METRICS;
  for (const metric of metrics.filter((candidate) => !known.includes(candidate))) {
    violations.push({ field: "metrics", value: metric.slice(0, 64), description: `must be of ${METRICS.join(", ")}` });
  }
  if (fromRound < 0) {
    violations.push({ field: "from_round", value: String(fromRound), description: "must be 0 or more" });
  }
  return violations;
}
