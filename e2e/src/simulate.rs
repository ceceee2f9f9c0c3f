//! The autoscaler, played through days of load in seconds: `cargo e2e simulate`.

use anyhow::Result;

use crate::report::numbers::{count, duration};
use crate::report::{Mark, Page, Plot, Series};

mod cases;
mod goals;
mod shard;
mod world;

use cases::Case;
use goals::{judge, longest_lag};
use world::{Act, Moment, Story, play};

const SEED: u64 = 20_26;

/// Plays all cases, and writes a page. Whether all goals are met.
pub fn run() -> Result<bool> {
    let mut page = Page::new("Penstock: the autoscaler, simulated");
    let played: Vec<(Case, Story)> = cases::all()
        .into_iter()
        .map(|case| (play(case.setting.clone(), SEED), case))
        .map(|(story, case)| (case, story))
        .collect();
    let (mut rows, mut missed) = (Vec::new(), 0);
    for (case, story) in &played {
        for goal in &case.goals {
            let result = judge(*goal, case, story);
            missed += usize::from(!result.met);
            let met = if result.met { "met" } else { "MISSED" };
            rows.push([case.name, &result.demanded, &result.seen, met].map(str::to_owned).to_vec());
        }
    }
    for row in &rows {
        println!("{:<42} {:<34} {:>18}  {}", row[0], row[1], row[2], row[3]);
    }
    let verdict = format!("{} of {} goals are met", rows.len() - missed, rows.len());
    page.verdict(missed == 0, &verdict);
    page.text(
        "The operator's own autoscaler, plan and assignment of keys, and the worker's own rule for what limits it, on \
         a broker, workers and a database that are arithmetic: windows of 20 messages, 1 ms to the broker, 5 ms a \
         commit, and two shards that do 45 % of what they can, if nothing else is said. A queue stays with the session it came to. The same seed plays the same.",
    );
    page.table(&["case", "goal", "seen", ""], &rows);
    for (case, story) in &played {
        chapter(&mut page, case, story)?;
    }
    println!("{verdict}: {}", page.write("autoscaling.html")?.display());
    Ok(missed == 0)
}

fn chapter(page: &mut Page, case: &Case, story: &Story) -> Result<()> {
    page.heading(case.name).text(case.about);
    let series = |name: &str, value: &dyn Fn(&Moment) -> f64| Series {
        name: name.to_owned(),
        // A point for each two seconds is enough for the eye.
        points: story.moments.iter().step_by(4).map(|moment| (moment.at, Some(value(moment)))).collect(),
    };
    let marks: Vec<Mark> = (case.setting.acts.iter())
        .map(|(at, act)| {
            let label = match act {
                Act::Spec(spec) => format!("maxReplicas: {}", spec.max_replicas),
                Act::Suspend(true) => "suspended".to_owned(),
                Act::Suspend(false) => "resumed".to_owned(),
                Act::Mend(_) => "mended".to_owned(),
            };
            Mark { at: *at, until: None, label }
        })
        .collect();
    let plot = |title, unit, series| Plot::new(title, unit, &marks, series);
    let load = vec![
        series("published", &|moment| moment.published),
        series("committed", &|moment| moment.committed),
    ];
    let shards = vec![
        series("wanted", &|moment| f64::from(moment.wanted)),
        series("running", &|moment| f64::from(moment.running)),
    ];
    page.plot(&plot("Load", "messages/s", load))?;
    page.plot(&plot("Shards", "", shards))?;
    page.plot(&plot("Lag", "s", vec![series("oldest message", &|moment| moment.lag)]))?;
    let steps: Vec<String> =
        story.changes.iter().map(|(at, from, to, _)| format!("{from} → {to} at {at:.0} s")).collect();
    let steps = if steps.is_empty() { "none".to_owned() } else { steps.join(", ") };
    page.text(&format!(
        "Changes: {steps}. Keys moved: {}. Longest lag: {}.",
        count(story.moves as f64),
        duration(longest_lag(story))
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_goals_are_met_with_any_noise() {
        for seed in [1, 2, 3] {
            for case in cases::all() {
                let story = play(case.setting.clone(), seed);
                for goal in &case.goals {
                    let result = judge(*goal, &case, &story);
                    assert!(
                        result.met,
                        "{}, seed {seed}: {} demanded, {} seen; {:?}",
                        case.name, result.demanded, result.seen, story.changes
                    );
                }
            }
        }
    }

    #[test]
    fn the_same_seed_plays_the_same() {
        let case = &cases::all()[0];
        let stories = [(); 2].map(|()| play(case.setting.clone(), 7));
        assert_eq!(stories[0].changes, stories[1].changes);
    }
}
