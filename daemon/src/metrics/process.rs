//! Figures of this process as the kernel has them, under the names that Prometheus' client libraries agree on.

use std::fs;

/// The unit of times in /proc, of which there are 100 a second on every Linux this program runs on.
const TICKS: f64 = 100.0;

/// Name, meaning, type and value, in order of names. What the kernel does not tell is left out.
pub(super) fn figures() -> Vec<(&'static str, &'static str, &'static str, f64)> {
    let stat = Stat::read();
    let limit = |name| limit(&fs::read_to_string("/proc/self/limits").unwrap_or_default(), name);
    let network = network(&fs::read_to_string("/proc/self/net/netstat").unwrap_or_default());
    let open = fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1) as f64);
    let figures = [
        (
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            "counter",
            stat.as_ref().map(|stat| stat.cpu),
        ),
        ("process_max_fds", "Maximum number of open file descriptors.", "gauge", limit("Max open files")),
        (
            "process_network_receive_bytes_total",
            "Number of bytes received by the process over the network.",
            "counter",
            network.map(|network| network.0),
        ),
        (
            "process_network_transmit_bytes_total",
            "Number of bytes sent by the process over the network.",
            "counter",
            network.map(|network| network.1),
        ),
        ("process_open_fds", "Number of open file descriptors.", "gauge", open),
        ("process_resident_memory_bytes", "Resident memory size in bytes.", "gauge", memory("VmRSS:")),
        (
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            "gauge",
            stat.as_ref().and_then(|stat| Some(boot_time()? + stat.started)),
        ),
        ("process_virtual_memory_bytes", "Virtual memory size in bytes.", "gauge", memory("VmSize:")),
        (
            "process_virtual_memory_max_bytes",
            "Maximum amount of virtual memory available in bytes.",
            "gauge",
            limit("Max address space"),
        ),
    ];
    figures.into_iter().filter_map(|(name, help, kind, value)| Some((name, help, kind, value?))).collect()
}

struct Stat {
    /// Seconds.
    cpu: f64,
    /// Seconds since the machine's start.
    started: f64,
}

impl Stat {
    fn read() -> Option<Stat> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The name in brackets may hold anything; what follows is numbers, the state first.
        let (_, numbers) = text.rsplit_once(')')?;
        let numbers: Vec<&str> = numbers.split_ascii_whitespace().collect();
        let number = |field: usize| numbers.get(field - 3)?.parse::<f64>().ok();
        Some(Stat { cpu: (number(14)? + number(15)?) / TICKS, started: number(22)? / TICKS })
    }
}

fn memory(name: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_ascii_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The soft limit.
fn limit(limits: &str, name: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_ascii_whitespace().next()? {
        // What the client libraries say for no limit.
        "unlimited" => Some(u64::MAX as f64),
        number => number.parse().ok(),
    }
}

/// Bytes received and sent by this network namespace.
fn network(netstat: &str) -> Option<(f64, f64)> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let names: Vec<&str> = lines.next()?.split(' ').collect();
    let values: Vec<&str> = lines.next()?.split(' ').collect();
    let value = |name| {
        let index = names.iter().position(|found| *found == name)?;
        values.get(index)?.parse().ok()
    };
    Some((value("InOctets")?, value("OutOctets")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_all_of_it() {
        let figures = figures();
        let value = |name| figures.iter().find(|figure| figure.0 == name).unwrap().3;
        assert_eq!(figures.len(), 9);
        assert!(figures.is_sorted_by_key(|figure| figure.0));
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        let started = value("process_start_time_seconds");
        let now = crate::clock::Clock::wall().unix() as f64;
        assert!(started <= now + 1.0 && now - started < 24.0 * 3600.0, "{started} {now}");
    }
}
