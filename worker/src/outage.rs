//! What an outage of the worker would cost at the broker. Pure. A broker does not tell its limits, so
//! these are the defaults of its makers.

use std::time::Duration;

/// What a broker queues for a session whose client is away, by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Which broker.
    pub broker: &'static str,
    /// Messages for each session; `None` without a limit.
    pub limit: Option<u64>,
    /// What it does with more, and what to set.
    pub remedy: &'static str,
}

const MOSQUITTO: Queue = Queue {
    broker: "Mosquitto",
    limit: Some(1000),
    remedy: "it drops the newest; set max_queued_messages (0: no limit)",
};
const UNKNOWN: Queue = Queue {
    broker: "the default of Mosquitto, EMQX, HiveMQ and VerneMQ",
    limit: Some(1000),
    remedy: "EMQX drops the oldest (mqtt.max_mqueue_len), the others the newest (max_queued_messages, queued-messages.max-queue-size, max_offline_messages)",
};

/// The queue of the broker that names itself so in `$SYS/broker/version`.
pub fn queue(version: Option<&str>) -> Queue {
    match version {
        Some(version) if version.starts_with("mosquitto") => MOSQUITTO,
        _ => UNKNOWN,
    }
}

/// What would be lost at this rate, if something would.
pub fn warning(queue: Queue, sessions: u64, rate: f64, outage: Duration) -> Option<String> {
    let limit = queue.limit? * sessions;
    let needed = (rate * outage.as_secs_f64()).ceil();
    if needed <= limit as f64 {
        return None;
    }
    let lasts = limit as f64 / rate;
    Some(format!(
        "at {rate:.1} messages/s an outage of {outage:?} needs a queue of {needed:.0} messages; with the broker's own \
         setting unknown, {limit} are assumed ({}): full after {lasts:.0} s, and then messages are lost before this \
         worker sees them. {}",
        queue.broker, queue.remedy
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_an_outage_overflows_is_warned_of_with_the_size_that_it_needs() {
        let mosquitto = queue(Some("mosquitto version 2.0.21"));
        assert_eq!(mosquitto, MOSQUITTO);
        let minute = Duration::from_secs(60);
        assert_eq!(warning(mosquitto, 1, 16.0, minute), None);
        let text = warning(mosquitto, 1, 50.0, minute).unwrap();
        assert!(text.contains("3000 messages") && text.contains("full after 20 s"), "{text}");
        assert_eq!(warning(mosquitto, 3, 50.0, minute), None, "each session has a queue");
        assert!(warning(queue(None), 1, 50.0, minute).unwrap().contains("EMQX"));
        assert_eq!(warning(Queue { limit: None, ..UNKNOWN }, 1, 1e6, minute), None);
        assert_eq!(warning(mosquitto, 1, 0.0, minute), None);
    }
}
