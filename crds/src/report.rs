//! What workers and their jobs say of themselves: the one definition for who writes it and who reads
//! it. Unknown fields are ignored and missing ones have defaults, so that versions may differ.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use self::job::{Failure, Outcome, Proof, Removed, RetireReport, StoreReport, termination_message};

mod job;

/// A bounded word for what is wrong, and a text for a person.
pub type Reason = (String, String);

/// A worker's `/status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStatus {
    /// Which shard of which pipeline: `namespace/pipeline/shard`. Empty until the manifest is read.
    pub shard: String,
    /// The worker's version.
    pub version: String,
    /// Whether it consumes and stores.
    pub ready: bool,
    /// The queue is full, and it moves.
    pub backpressured: bool,
    /// Why it is not ready.
    pub reasons: Vec<Reason>,
    /// Share of the byte budget in use, 0 to 1.
    pub queue_fill: f64,
    /// Deliveries that are not acknowledged.
    pub unacked: usize,
    /// Age of the oldest of them.
    pub oldest_unacked_seconds: f64,
    /// Digest of the manifest and plan files that are followed: [`crate::plan::files_digest`].
    pub manifest: String,
    /// What is wrong with files that changed: the last good ones are used.
    pub unfollowed: Vec<Reason>,
    /// The plan that is followed; none while the lease is not held.
    pub plan: Option<PlanStatus>,
    /// Filters that the broker grants at QoS 1 or more on the connections that are open.
    pub subscribed: BTreeSet<String>,
    /// The shard's lease.
    pub lease: LeaseStatus,
    /// The shard's sessions.
    pub sessions: Vec<SessionStatus>,
    /// The largest window observed.
    pub window_observed: usize,
    /// What limits the throughput now.
    #[serde(rename = "limitedBy")]
    pub limited_by: Limit,
    /// Seconds in which nobody consumed the shard when this worker took it over; none if nobody did before.
    pub takeover_gap_seconds: Option<f64>,
    /// Messages committed in a second, of the last 10 s.
    pub rate: f64,
    /// How much of what it could do it did in that time, 0 to 1: the mean share of the broker's window that
    /// was in use, or of the busiest thread's time. Both grow with the load, as far as something limits it.
    pub utilisation: f64,
    /// Seconds of a commit in that time; none without one.
    pub commit_seconds: Option<f64>,
    /// How old messages were when they were committed, in seconds, by their own times: the middle one of each
    /// batch. None if none tells its time.
    pub delay_seconds: Option<f64>,
    /// By how many seconds that grew in a second. Where it grows, the broker has more than is taken from it.
    pub delay_growth: Option<f64>,
    /// Messages committed in a second of each key, of the keys that had any.
    pub key_rates: BTreeMap<String, f64>,
    /// Share of that time in which the busiest thread was busy, 0 to 1.
    pub busy: f64,
    /// Number of the broker connection.
    pub epoch: u64,
    /// Deliveries received since the start.
    pub received: u64,
    /// Deliveries committed.
    pub committed: u64,
    /// Deliveries given up uncommitted.
    pub abandoned: u64,
    /// Deliveries at QoS 0 that found no room.
    pub dropped_qos0: u64,
    /// Deliveries in hand.
    pub in_flight: i64,
}

impl WorkerStatus {
    /// The status of a worker that is not ready for one reason.
    pub fn not_ready(reason: &str, why: String) -> Self {
        Self { reasons: vec![(reason.to_owned(), why)], ..Self::default() }
    }
}

/// A plan that is followed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlanStatus {
    /// Its generation.
    pub generation: i64,
    /// Its keys. Not known where the plan file is older than the plan that the shard followed before:
    /// that one's filters are kept.
    pub keys: Option<Vec<String>>,
}

/// A shard's lease, as its worker knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseStatus {
    /// Whether this worker holds it.
    pub held: bool,
    /// Why not.
    pub why: String,
    /// Highest plan generation that the shard has followed; one more where only a newer one begins it again, after
    /// it was retired.
    pub plan_generation: i64,
    /// Filters that the broker's sessions may have.
    pub filters: BTreeSet<String>,
}

/// One session with the broker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionStatus {
    /// Its state.
    #[serde(flatten)]
    pub link: Link,
    /// Deliveries that are not acknowledged.
    pub unacked: usize,
    /// The largest window observed.
    pub window_observed: usize,
    /// Number of the connection.
    pub epoch: u64,
}

/// The link of one session to the broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    /// CONNACK received, connection open.
    pub connected: bool,
    /// Whether the broker had the session at the last connect.
    pub session_present: Option<bool>,
    /// For each filter the granted QoS, or the refusal; `None` until SUBACK.
    pub subscriptions: BTreeMap<String, Option<Result<u8, String>>>,
    /// Why the last connection ended.
    pub last_end: Option<Reason>,
}

impl Link {
    /// Filters that the broker grants at QoS 1 or more now.
    pub fn granted(&self) -> impl Iterator<Item = &String> {
        let granted = self.subscriptions.iter().filter(|(_, grant)| matches!(grant, Some(Ok(1..))));
        granted.filter(|_| self.connected).map(|(filter, _)| filter)
    }

    /// Whether a filter is granted now.
    pub fn has(&self, filter: &str) -> bool {
        self.connected && matches!(self.subscriptions.get(filter), Some(Some(Ok(1..))))
    }

    /// Whether it is connected and all that it asked for is granted.
    pub fn is_whole(&self) -> bool {
        self.connected && self.subscriptions.values().all(|grant| matches!(grant, Some(Ok(1..))))
    }
}

/// What limits the throughput.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Limit {
    /// The broker sends nothing more before it gets an acknowledgement.
    BrokerWindow,
    /// The database takes no more.
    Database,
    /// This process has no more processor time.
    Cpu,
    /// Nothing: what is published is stored as it comes.
    #[default]
    #[serde(other)]
    Nothing,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::BrokerWindow, Self::Database, Self::Cpu, Self::Nothing];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BrokerWindow => "brokerWindow",
            Self::Database => "database",
            Self::Cpu => "cpu",
            Self::Nothing => "nothing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_another_version_is_understood() {
        let newer = r#"{"shard": "a/b/0", "colour": 7, "limitedBy": "moon", "lease": {"held": true, "x": 1},
            "plan": {"generation": 3}, "sessions": [{"connected": true, "subscriptions": {"a/#": {"Ok": 1}, "b": {"Err": "no"}, "c": null}, "y": 1}]}"#;
        let status: WorkerStatus = serde_json::from_str(newer).unwrap();
        assert_eq!((&*status.shard, status.limited_by, status.lease.held), ("a/b/0", Limit::Nothing, true));
        assert_eq!(status.plan, Some(PlanStatus { generation: 3, keys: None }));
        let link = &status.sessions[0].link;
        assert!(link.connected && link.subscriptions["b"] == Some(Err("no".to_owned())));
        assert_eq!(serde_json::from_str::<WorkerStatus>("{}").unwrap(), WorkerStatus::default());
    }

    #[test]
    fn a_status_is_read_as_it_was_written() {
        let status = WorkerStatus {
            plan: Some(PlanStatus { generation: 3, keys: Some(vec!["a/#".into()]) }),
            sessions: vec![SessionStatus {
                link: Link {
                    last_end: Some(("away".into(), "gone".into())),
                    subscriptions: [("a/#".to_owned(), Some(Ok(1)))].into(),
                    ..Link::default()
                },
                ..SessionStatus::default()
            }],
            ..WorkerStatus::not_ready("secret_missing", "mqtt/password".into())
        };
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<WorkerStatus>(&text).unwrap(), status);
        for limit in Limit::ALL {
            assert_eq!(serde_json::to_value(limit).unwrap(), limit.as_str());
            assert_eq!(serde_json::from_value::<Limit>(limit.as_str().into()).unwrap(), limit);
        }
    }
}
