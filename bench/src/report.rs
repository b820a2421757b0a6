//! What a measurement says: figures beside the floor of the same run, the machine, the date.
//!
//! * Every benchmark gives a [`Run`]: rows that can be printed, stored and compared.
//! * A ratio is always to a row of the same run, measured on the same machine minutes apart at most.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// One line of a result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured, in a few words.
    pub name: String,
    /// How often it was done.
    pub count: u64,
    /// Times a second.
    pub per_second: f64,
    /// Payload bytes a second; 0 where there is no payload.
    pub bytes_per_second: f64,
    /// Median, nanoseconds.
    pub p50_ns: u64,
    /// 99th percentile, nanoseconds.
    pub p99_ns: u64,
    /// 99.9th percentile, nanoseconds.
    pub p999_ns: u64,
    /// Processor time of everybody involved, nanoseconds for each, where it was measured.
    #[serde(default)]
    pub cpu_ns: Option<f64>,
    /// System calls of the server for each, where they were counted.
    #[serde(default)]
    pub system_calls: Option<f64>,
    /// What was asked for, times a second, where more was asked for than was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered_per_second: Option<f64>,
    /// What was refused, times a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_per_second: Option<f64>,
    /// The row of this run that it is compared with.
    pub floor: Option<String>,
    /// How it compares, by the figure that the benchmark is about: 0.9 = nine tenths of the floor's rate, or for
    /// latencies 2.4 = 2.4 times the floor's time. `higher_is_better` says which.
    pub ratio: Option<f64>,
    /// Whether a higher ratio is better (rates) or a lower one (latencies).
    pub higher_is_better: bool,
}

impl Row {
    /// A row of `latencies` (nanoseconds) that took `seconds` in all and moved `bytes` of payload.
    pub fn new(name: impl Into<String>, latencies: &Histogram<u64>, seconds: f64, bytes: u64) -> Row {
        Row {
            name: name.into(),
            count: latencies.len(),
            per_second: latencies.len() as f64 / seconds,
            bytes_per_second: bytes as f64 / seconds,
            p50_ns: latencies.value_at_quantile(0.5),
            p99_ns: latencies.value_at_quantile(0.99),
            p999_ns: latencies.value_at_quantile(0.999),
            cpu_ns: None,
            system_calls: None,
            offered_per_second: None,
            refused_per_second: None,
            floor: None,
            ratio: None,
            higher_is_better: true,
        }
    }

    /// Compares the rate with that of `floor`.
    pub fn rate_beside(mut self, floor: &Row) -> Row {
        self.floor = Some(floor.name.clone());
        self.ratio = (floor.per_second > 0.0).then(|| self.per_second / floor.per_second);
        self.higher_is_better = true;
        self
    }

    /// Compares the median time with that of `floor`.
    pub fn median_beside(mut self, floor: &Row) -> Row {
        self.floor = Some(floor.name.clone());
        self.ratio = (floor.p50_ns > 0).then(|| self.p50_ns as f64 / floor.p50_ns as f64);
        self.higher_is_better = false;
        self
    }
}

/// A histogram from 1 ns to a minute with three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are constant and valid")
}

/// The machine that a run was made on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// The load averages when the run began.
    pub load: String,
}

impl Machine {
    /// Describes this machine from `/proc`; what is not there stays empty.
    pub fn here() -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo")
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split(':').nth(1))
            .map_or_else(String::new, |name| name.trim().to_string());
        Machine {
            processor,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_string(),
            load: read("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" "),
        }
    }
}

/// One run of one benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// `ipc`, `block`, `http`, `recovery` or `overload`.
    pub bench: String,
    /// Seconds since the Unix epoch at its begin.
    pub unix_seconds: u64,
    /// Where.
    pub machine: Machine,
    /// What was found, floors first.
    pub rows: Vec<Row>,
    /// What a reader must know to judge it, a sentence each.
    pub notes: Vec<String>,
}

impl Run {
    /// An empty run that begins now on this machine.
    pub fn begin(bench: &str) -> Run {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Run {
            bench: bench.into(),
            unix_seconds: since.map_or(0, |since| since.as_secs()),
            machine: Machine::here(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }
}
