//! Lambda's limits, as one table of data, each with its source.
//!
//! Lambda's "MB" is 1024² bytes: its "250 MB" is 262,144,000 and its "50 MB" 52,428,800.

/// One mebibyte, which Lambda's pages call MB.
pub const MIB: u64 = 1024 * 1024;

/// A limit of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Stable name, as in JSON output.
    pub name: &'static str,
    /// What is limited, for people.
    pub what: &'static str,
    /// Bytes (or a plain count where `what` says so).
    pub value: u64,
    /// Where the figure comes from.
    pub source: &'static str,
}

impl Limit {
    /// The same in MiB, for limits that are whole numbers of them.
    pub const fn mib(self) -> u32 {
        (self.value / MIB) as u32
    }
}

/// Deployment package and layers together, unzipped: must be *smaller* than this.
pub const UNZIPPED: Limit = Limit {
    name: "unzipped",
    what: "deployment package unzipped, layers included",
    value: 250 * MIB,
    source: "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html",
};

/// A zip sent directly in the API call; above it the zip goes through S3.
pub const ZIPPED_DIRECT: Limit = Limit {
    name: "zipped-direct",
    what: "deployment package zipped, uploaded directly",
    value: 50 * MIB,
    source: "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html",
};

/// The smallest and default `EphemeralStorage.Size`.
pub const TMP_DEFAULT: Limit = Limit {
    name: "tmp-default",
    what: "/tmp unless EphemeralStorage is set",
    value: 512 * MIB,
    source: "https://docs.aws.amazon.com/lambda/latest/api/API_EphemeralStorage.html",
};

/// The largest `EphemeralStorage.Size`.
pub const TMP_MAX: Limit = Limit {
    name: "tmp-max",
    what: "/tmp at most",
    value: 10_240 * MIB,
    source: "https://docs.aws.amazon.com/lambda/latest/api/API_EphemeralStorage.html",
};

/// Memory of a function: least, and what it is when nobody sets it.
pub const MEMORY_MIN: Limit = Limit {
    name: "memory-min",
    what: "function memory at least",
    value: 128 * MIB,
    source: "https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html",
};

/// Memory of a function: most.
pub const MEMORY_MAX: Limit = Limit {
    name: "memory-max",
    what: "function memory at most",
    value: 10_240 * MIB,
    source: "https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html",
};

/// Memory that stands for the time of one vCPU; for more or less memory it is more or less time, in proportion.
///
/// That is what an invocation has, a start under provisioned concurrency, and one after a crash. At other starts Lambda lends the Init
/// phase more, which its own projects call "burst CPU"
/// (<https://awslabs.github.io/aws-lambda-web-adapter/configuration/async-init.html>) and no page promises; others saw one vCPU, whatever
/// the memory (<https://github.com/DataDog/datadog-lambda-extension/pull/700>), or two
/// (<https://lucvandonkersgoed.com/2022/04/08/lambda-cold-starts-and-bootstrap-code/>).
pub const VCPU: Limit = Limit {
    name: "vcpu",
    what: "function memory that stands for one vCPU",
    value: 1_769 * MIB,
    source: "https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html",
};

/// Longest time a function may be given, in seconds.
pub const TIMEOUT_MAX: Limit = Limit {
    name: "timeout-max",
    what: "function timeout at most (seconds)",
    value: 900,
    source: "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html",
};

/// The Init phase, in seconds.
pub const INIT: Limit = Limit {
    name: "init",
    what: "Init phase (seconds)",
    value: 10,
    source: "https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html",
};

/// Open file descriptors, and likewise threads and processes.
pub const DESCRIPTORS: Limit = Limit {
    name: "descriptors",
    what: "file descriptors; threads and processes (count)",
    value: 1_024,
    source: "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html",
};

/// An event, synchronously: no more than this.
pub const EVENT: Limit = Limit {
    name: "event",
    what: "event at most",
    value: 6 * MIB,
    source: "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html",
};

/// A function's answer: the 6 MB of the quotas and 100 bytes for the envelope, which is the figure
/// in Lambda's own error message.
pub const RESPONSE: Limit = Limit {
    name: "response",
    what: "answer at most",
    value: 6 * MIB + 100,
    source: "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html",
};

/// All of a function's own environment variables together.
pub const ENVIRONMENT: Limit = Limit {
    name: "environment",
    what: "own environment variables, names and values together",
    value: 4 * 1024,
    source: "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html",
};

/// Layers of one function.
pub const LAYERS: Limit = Limit {
    name: "layers",
    what: "layers (count)",
    value: 5,
    source: "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html",
};

/// Cores that a function sees: up to this much memory (MiB), so many. How much time it has on them is [`VCPU`]'s to
/// say; the number was read out of functions of every size: <https://github.com/rwnx/lambda-cpuinfo>.
pub const CORES: &[(u32, usize)] = &[
    (3_008, 2),
    (5_307, 3),
    (7_076, 4),
    (8_845, 5),
    (MEMORY_MAX.mib(), 6),
];

/// Cores that a function with so much memory (MiB) sees.
pub fn cores(memory_mib: u32) -> usize {
    let row = CORES.iter().find(|(most, _)| memory_mib <= *most);
    row.map_or(6, |(_, cores)| *cores)
}

/// Time on its cores that a function with so much memory (MiB) has: thousandths of a vCPU.
pub fn vcpu_thousandths(memory_mib: u32) -> u32 {
    let share = u64::from(memory_mib) * 1000 / u64::from(VCPU.mib());
    (share as u32).min(cores(memory_mib) as u32 * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_has_the_share_of_its_memory() {
        for (memory, expected) in [
            (128, 72),
            (256, 144),
            (1_024, 578),
            (1_769, 1_000),
            (3_008, 1_700),
            (3_538, 2_000),
            (5_307, 3_000),
            (8_845, 5_000),
            // Lambda's page says six; 10,240 / 1,769 is a little less.
            (10_240, 5_788),
        ] {
            assert_eq!(vcpu_thousandths(memory), expected, "{memory} MiB");
            assert!(expected <= cores(memory) as u32 * 1000, "{memory} MiB");
        }
    }

    #[test]
    fn cores_follow_memory() {
        for (memory, expected) in [
            (128, 2),
            (1_769, 2),
            (3_008, 2),
            (3_009, 3),
            (5_307, 3),
            (5_308, 4),
            (8_845, 5),
            (10_240, 6),
        ] {
            assert_eq!(cores(memory), expected, "{memory} MiB");
        }
    }
}
