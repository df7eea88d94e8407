import type { Counter, Gauge, Histogram, Labels, Metrics } from "../../ports/metrics.js";

/** Metrics a test can read: counters and gauges by value, histograms by their observations. */
export class MemoryMetrics implements Metrics {
  private readonly values = new Map<string, number>();
  private readonly observed = new Map<string, number[]>();

  counter(name: string): Counter {
    return {
      add: (value, labels) => {
        this.values.set(keyOf(name, labels), this.value(name, labels) + value);
      },
    };
  }

  gauge(name: string): Gauge {
    return {
      set: (value, labels) => {
        this.values.set(keyOf(name, labels), value);
      },
    };
  }

  histogram(name: string): Histogram {
    return {
      observe: (value, labels) => {
        const key = keyOf(name, labels);
        this.observed.set(key, [...(this.observed.get(key) ?? []), value]);
      },
    };
  }

  /** Value of a counter or gauge; 0 if it was never touched. */
  value(name: string, labels?: Labels): number {
    return this.values.get(keyOf(name, labels)) ?? 0;
  }

  /** Everything a histogram observed, in order. */
  observations(name: string, labels?: Labels): readonly number[] {
    return this.observed.get(keyOf(name, labels)) ?? [];
  }
}

function keyOf(name: string, labels: Labels = {}): string {
  const pairs = Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1));
  return `${name}${JSON.stringify(pairs)}`;
}
