import { once } from "node:events";
import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from "prom-client";
import type * as ports from "../ports/metrics.js";

/** Default metrics of prom-client that are gauges with a counter's name, which promtool objects to. */
const MISNAMED = ["nodejs_active_handles_total", "nodejs_active_requests_total", "nodejs_active_resources_total"];

/** Metrics in a Prometheus registry of their own, with those of the Node.js process. */
export class PromMetrics implements ports.Metrics {
  readonly registry = new Registry();

  /** `labels` are added to every metric, e.g. the name of the service. */
  constructor(labels: Record<string, string> = {}) {
    this.registry.setDefaultLabels(labels);
    collectDefaultMetrics({ register: this.registry });
    for (const name of MISNAMED) this.registry.removeSingleMetric(name);
  }

  counter(name: string, help: string, labelNames: readonly string[] = []): ports.Counter {
    const known = this.registry.getSingleMetric(name);
    const metric =
      known instanceof Counter ? known : new Counter({ name, help, labelNames, registers: [this.registry] });
    return { add: (value, labels = {}) => metric.inc({ ...labels }, value) };
  }

  gauge(name: string, help: string, labelNames: readonly string[] = []): ports.Gauge {
    const known = this.registry.getSingleMetric(name);
    const metric = known instanceof Gauge ? known : new Gauge({ name, help, labelNames, registers: [this.registry] });
    return { set: (value, labels = {}) => metric.set({ ...labels }, value) };
  }

  histogram(
    name: string,
    help: string,
    buckets: readonly number[],
    labelNames: readonly string[] = [],
  ): ports.Histogram {
    const known = this.registry.getSingleMetric(name);
    const metric =
      known instanceof Histogram
        ? known
        : new Histogram({ name, help, labelNames, buckets: [...buckets], registers: [this.registry] });
    return { observe: (value, labels = {}) => metric.observe({ ...labels }, value) };
  }
}

/** What a process waits for, by name; empty when it is ready. */
export type Readiness = () => readonly string[];

/** HTTP server of /metrics, /healthz (the process lives) and /readyz (it can work; otherwise what it waits for). */
export class MetricsServer {
  private constructor(
    private readonly server: Server,
    readonly port: number,
  ) {}

  static async listen(
    address: { host: string; port: number },
    metrics: PromMetrics,
    readiness: Readiness,
  ): Promise<MetricsServer> {
    const server = createServer((request, response) => {
      void answer(request.url ?? "/", response, metrics, readiness);
    });
    server.listen(address.port, address.host);
    await once(server, "listening");
    return new MetricsServer(server, (server.address() as AddressInfo).port);
  }

  async close(): Promise<void> {
    this.server.close();
    this.server.closeAllConnections();
    await once(this.server, "close");
  }
}

async function answer(
  url: string,
  response: ServerResponse,
  metrics: PromMetrics,
  readiness: Readiness,
): Promise<void> {
  const path = url.split("?")[0];
  const plain = { "content-type": "text/plain; charset=utf-8" };
  if (path === "/metrics") {
    const text = await metrics.registry.metrics();
    response.writeHead(200, { "content-type": metrics.registry.contentType }).end(text);
  } else if (path === "/healthz") {
    response.writeHead(200, plain).end("ok\n");
  } else if (path === "/readyz") {
    const waitingFor = readiness();
    if (waitingFor.length === 0) response.writeHead(200, plain).end("ok\n");
    else response.writeHead(503, plain).end(`waiting for ${waitingFor.join(", ")}\n`);
  } else {
    response.writeHead(404, plain).end("not found: /metrics, /healthz, /readyz\n");
  }
}
