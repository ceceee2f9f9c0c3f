//! The cases that are played, each with what is demanded of it.

use std::f64::consts::TAU;

use penstock_crds::operations::Autoscaling;
use penstock_operator::autoscale::Limited;

use super::goals::Goal;
use super::world::{Act, Setting};

/// A case.
pub struct Case {
    /// What it is called.
    pub name: &'static str,
    /// What it shows, for a person.
    pub about: &'static str,
    /// What is played.
    pub setting: Setting,
    /// What is demanded.
    pub goals: Vec<Goal>,
}

/// Messages a second that a shard of these settings does: a window of 20, 1 ms to the broker, 5 ms a commit.
const SHARD: f64 = 20.0 / 0.006;

fn spec(min: i32, max: i32) -> Autoscaling {
    Autoscaling { min_replicas: min, max_replicas: max, target_utilization: 70, behavior: None }
}

/// A load for two shards. They fall behind at 4x, and what has queued by the time others have started stays with
/// them: from much more than this no number of shards catches up in three times the start of a pod.
const LOAD: f64 = 0.9 * SHARD;

/// Two shards that do less than half of what they can, of 64 keys.
fn rest() -> Setting {
    Setting {
        spec: spec(1, 20),
        replicas: 2,
        keys: vec![1.0; 64],
        load: |_| LOAD,
        noise: 0.05,
        start: 30.0,
        window: 20.0,
        round_trip: 0.001,
        commit: 0.005,
        database: 1e9,
        broker: 1e9,
        cpu: 1e9,
        acts: Vec::new(),
        seconds: 1800.0,
    }
}

fn step(at: f64) -> f64 {
    if (300.0..1500.0).contains(&at) { 4.0 * LOAD } else { LOAD }
}

/// Weights of keys as they are found: few heavy ones, and many that are light.
fn unequal(count: u32) -> Vec<f64> {
    (5..count + 5).map(|rank| 1.0 / f64::from(rank)).collect()
}

/// All of them.
pub fn all() -> Vec<Case> {
    let case = |name, about, setting, goals| Case { name, about, setting, goals };
    vec![
        case(
            "Four times the load",
            "1x, 4x and 1x again, with pods that need 30 s to start.",
            Setting { load: step, seconds: 2700.0, ..rest() },
            vec![Goal::CaughtUp { after: 300.0 }, Goal::Overshoot, Goal::EndsAt(2), Goal::Even(0.2)],
        ),
        case(
            "Slow pods (numaflow #1853)",
            "A ramp to 4x in five minutes, with pods that need two minutes to start: no oscillation.",
            Setting {
                load: |at| LOAD * (1.0 + 3.0 * ((at - 300.0) / 300.0).clamp(0.0, 1.0)),
                start: 120.0,
                seconds: 2700.0,
                ..rest()
            },
            vec![Goal::CaughtUp { after: 600.0 }, Goal::Overshoot, Goal::Turns(1), Goal::Even(0.2)],
        ),
        case(
            "Constant load (#136)",
            "An hour of the same load, wavering by a tenth: nothing changes.",
            Setting { noise: 0.1, seconds: 3600.0, ..rest() },
            vec![Goal::Changes(0)],
        ),
        case(
            "The database is the limit (#136)",
            "4x the load, of which the database takes 1.1x: shards are not added.",
            Setting { load: step, database: 1.1 * SHARD, seconds: 1500.0, ..rest() },
            vec![Goal::Ups(0), Goal::Limited(Limited::Database)],
        ),
        case(
            "The database is nearly the limit",
            "4x the load, of which the database takes 1.6x: commits tell only after one step.",
            Setting { load: step, database: 1.8 * SHARD, seconds: 1500.0, ..rest() },
            vec![Goal::Ups(1), Goal::Limited(Limited::Database)],
        ),
        case(
            "A database that gets slow, and recovers",
            "At 4x the load it takes 1.1x until it is mended at 900 s: then shards are added.",
            Setting {
                load: step,
                database: 1.1 * SHARD,
                acts: vec![(900.0, Act::Mend(1e9))],
                seconds: 1400.0,
                ..rest()
            },
            vec![Goal::AtLeast(6), Goal::Overshoot],
        ),
        case(
            "The broker is the limit (#136)",
            "4x the load, of which the broker gives 1.5x: more shards bring nothing, and are not followed by more.",
            Setting { load: step, broker: 1.5 * SHARD, seconds: 1500.0, ..rest() },
            vec![Goal::Ups(1), Goal::Limited(Limited::BrokerWindow)],
        ),
        case(
            "Busy processors",
            "4x the load, with workers that their processors limit.",
            Setting { load: step, window: 1000.0, commit: 0.02, cpu: SHARD, seconds: 2700.0, ..rest() },
            vec![Goal::CaughtUp { after: 300.0 }, Goal::Overshoot, Goal::EndsAt(2)],
        ),
        case(
            "Little traffic (#1407)",
            "Two messages a second, and commits of 100 ms: little is no reason for more.",
            Setting { replicas: 1, load: |_| 2.0, commit: 0.1, ..rest() },
            vec![Goal::Changes(0)],
        ),
        case(
            "Few slow messages (#630)",
            "One message in ten seconds, and 20 s for each: a few unacknowledged messages are not 73 pods.",
            Setting { replicas: 1, load: |_| 0.1, commit: 20.0, ..rest() },
            vec![Goal::Changes(0)],
        ),
        case(
            "Nothing comes (#2220)",
            "No messages, and minReplicas: 2.",
            Setting { spec: spec(2, 20), load: |_| 0.0, ..rest() },
            vec![Goal::Within(2, 20), Goal::Changes(0)],
        ),
        case(
            "Bounds are edited (#3523)",
            "maxReplicas from 4 to 12 under 6x the load: shards are added, and no worker is started anew.",
            Setting {
                spec: spec(1, 4),
                load: |at| if at < 300.0 { SHARD } else { 5.0 * SHARD },
                acts: vec![(900.0, Act::Spec(spec(1, 12)))],
                ..rest()
            },
            vec![Goal::RestartsNothing, Goal::Within(2, 12), Goal::Overshoot, Goal::AtLeast(7)],
        ),
        case(
            "Suspended and resumed (#2331, #2839)",
            "Six shards are suspended for ten minutes: the count outlasts it, and what has queued starts no rush.",
            Setting {
                replicas: 6,
                load: |_| 4.0 * SHARD,
                acts: vec![(300.0, Act::Suspend(true)), (900.0, Act::Suspend(false))],
                seconds: 3600.0,
                ..rest()
            },
            vec![Goal::Overshoot, Goal::Within(6, 12)],
        ),
        case(
            "Too few keys",
            "Eight times the load, of three keys.",
            Setting { keys: vec![1.0; 3], load: |at| if at < 300.0 { SHARD } else { 8.0 * SHARD }, ..rest() },
            vec![Goal::EndsAt(3), Goal::Limited(Limited::NotEnoughKeys)],
        ),
        case(
            "One heavy key",
            "Four times the load, of which one key has nine tenths: more shards would not help it.",
            Setting {
                keys: [vec![90.0], vec![1.0; 10]].concat(),
                load: |at| if at < 300.0 { 0.8 * SHARD } else { 3.2 * SHARD },
                ..rest()
            },
            vec![Goal::Ups(1), Goal::Limited(Limited::HeavyKey)],
        ),
        case(
            "Keys of unequal weight",
            "Four times the load, of 200 keys whose heaviest weighs forty times as much as the lightest: shards end within a fifth of each other.",
            Setting {
                keys: unequal(200),
                load: |at| if at < 300.0 { SHARD } else { 4.0 * SHARD },
                seconds: 2700.0,
                ..rest()
            },
            vec![Goal::Overshoot, Goal::Even(0.2)],
        ),
        case(
            "A shared subscription",
            "1x, 4x and 1x again where the broker divides.",
            Setting { keys: Vec::new(), load: step, seconds: 2700.0, ..rest() },
            vec![Goal::CaughtUp { after: 300.0 }, Goal::Overshoot, Goal::EndsAt(2)],
        ),
        case(
            "Day and night",
            "Two days of an hour each, 1x to 5x: the count follows, and the queue stays short.",
            Setting { load: |at| SHARD * (3.0 - 2.0 * (at / 3600.0 * TAU).cos()), seconds: 7200.0, ..rest() },
            vec![Goal::LagBelow(30.0), Goal::Overshoot, Goal::Turns(4)],
        ),
    ]
}
