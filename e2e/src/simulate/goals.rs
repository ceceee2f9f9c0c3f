//! What is demanded of a case, and whether it was met.

use penstock_crds::Manifest;
use penstock_crds::plan::restart_digest;
use penstock_operator::autoscale::Limited;

use super::cases::Case;
use super::world::{Act, Story};

/// Age of the oldest message that is not stored, in seconds: as `readiness.maxUnackedAge`.
pub const LAG: f64 = 30.0;
/// Work of a shard that is aimed at.
const TARGET: f64 = 0.7;

/// What is demanded.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// The lag is under [`LAG`] again within three times what a pod needs to start, and stays so.
    CaughtUp {
        /// When the load rose.
        after: f64,
    },
    /// The lag is never longer.
    LagBelow(f64),
    /// At most one step up from a count that was enough.
    Overshoot,
    /// At most so many steps up.
    Ups(usize),
    /// At most so many changes.
    Changes(usize),
    /// At most so many turns from up to down or back.
    Turns(usize),
    /// The count at the end.
    EndsAt(u32),
    /// The count at the end is no lower.
    AtLeast(u32),
    /// The count all the time.
    Within(u32, u32),
    /// What `ScalingLimited` says most of the time in which the load is high.
    Limited(Limited),
    /// The shards' loads at the end are no farther apart.
    Even(f64),
    /// What is edited starts no worker anew.
    RestartsNothing,
}

/// A goal, what was seen, and whether that is good.
pub struct Result {
    /// What was demanded.
    pub demanded: String,
    /// What was seen.
    pub seen: String,
    /// Whether it is met.
    pub met: bool,
}

/// Looks at a story.
pub fn judge(goal: Goal, case: &Case, story: &Story) -> Result {
    let result = |demanded: &str, seen: String, met| Result { demanded: demanded.to_owned(), seen, met };
    let ups = story.changes.iter().filter(|(_, from, to, _)| to > from);
    let counts = || story.moments.iter().map(|moment| moment.wanted);
    let end = counts().next_back().unwrap_or_default();
    match goal {
        Goal::CaughtUp { after } => {
            let limit = 3.0 * case.setting.start;
            let behind =
                story.moments.iter().filter(|moment| moment.lag > LAG).map(|moment| moment.at - after);
            let longest = behind.fold(0.0, f64::max);
            result(
                &format!("lag under {LAG} s within {limit} s"),
                format!("{longest:.0} s"),
                longest <= limit,
            )
        }
        Goal::LagBelow(most) => {
            let longest = longest_lag(story);
            result(&format!("lag under {most} s"), format!("{longest:.1} s"), longest <= most)
        }
        Goal::Overshoot => {
            let over = ups.filter(|(_, from, _, work)| f64::from(*from) * TARGET >= *work).count();
            result("at most one step too many", over.to_string(), over <= 1)
        }
        Goal::Ups(most) => {
            let count = ups.count();
            result(&format!("{most} steps up at most"), count.to_string(), count <= most)
        }
        Goal::Changes(most) => {
            let count = story.changes.len();
            result(&format!("{most} changes at most"), count.to_string(), count <= most)
        }
        Goal::Turns(most) => {
            let ways: Vec<bool> = story.changes.iter().map(|(_, from, to, _)| to > from).collect();
            let turns = ways.windows(2).filter(|pair| pair[0] != pair[1]).count();
            result(&format!("{most} turns at most"), turns.to_string(), turns <= most)
        }
        Goal::EndsAt(count) => result(&format!("{count} shards at the end"), end.to_string(), end == count),
        Goal::AtLeast(count) => {
            result(&format!("{count} shards or more at the end"), end.to_string(), end >= count)
        }
        Goal::Within(least, most) => {
            let (low, high) =
                counts().fold((u32::MAX, 0), |(low, high), count| (low.min(count), high.max(count)));
            let met = low >= least && high <= most;
            result(&format!("{least} to {most} shards"), format!("{low} to {high}"), met)
        }
        Goal::Limited(why) => {
            // Of the time in which the queue is long, after what shards need to start.
            let wait = 300.0 + 4.0 * case.setting.start;
            let short = story.moments.iter().filter(|moment| moment.at > wait && moment.lag > LAG);
            let (all, said) = short.fold((0, 0), |(all, said), moment| {
                (all + 1, said + usize::from(moment.limited == Some(why)))
            });
            let share = f64::from(said as u32) / f64::from((all as u32).max(1));
            result(
                &format!("limited by {}", why.as_str()),
                format!("{:.0} % of the time", share * 100.0),
                share >= 0.9,
            )
        }
        Goal::Even(most) => {
            let apart = story.apart;
            result(
                &format!("shards within {:.0} %", most * 100.0),
                format!("{:.0} %", apart * 100.0),
                apart <= most,
            )
        }
        Goal::RestartsNothing => {
            let restarts = restarts(case);
            let met = restarts == Ok(0);
            result(
                "no worker starts anew",
                restarts.map_or_else(|error| error, |count| count.to_string()),
                met,
            )
        }
    }
}

/// The longest lag of a story.
pub fn longest_lag(story: &Story) -> f64 {
    story.moments.iter().map(|moment| moment.lag).fold(0.0, f64::max)
}

/// How often workers are started anew by what a person edits: by the digest that decides it.
fn restarts(case: &Case) -> std::result::Result<usize, String> {
    let mut manifest =
        Manifest::parse(include_str!("../../../examples/worker.yaml")).map_err(|error| error.to_string())?;
    let first = Some(case.setting.spec.clone());
    let edits = case.setting.acts.iter().filter_map(|(_, act)| match act {
        Act::Spec(spec) => Some(Some(spec.clone())),
        Act::Suspend(_) | Act::Mend(_) => None,
    });
    let mut digests = Vec::new();
    for spec in std::iter::once(first).chain(edits) {
        manifest.pipeline.spec.autoscaling = spec;
        digests.push(restart_digest(&manifest.pipeline.spec, &manifest.store.spec));
    }
    Ok(digests.windows(2).filter(|pair| pair[0] != pair[1]).count())
}
