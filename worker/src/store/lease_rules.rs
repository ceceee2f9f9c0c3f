//! Who may take a shard's lease. Pure: the row as it is, who asks, and the database's clock.

use std::time::Duration;

use crate::decode::Micros;

/// How long a lease lasts after its last renewal.
pub const TTL: Duration = Duration::from_secs(15);

const FIRST_WAIT: Micros = 60_000_000;
const LONGEST_WAIT: Micros = 600_000_000;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To run the shard. `preflight`: that this worker could, was just tried.
    Run {
        /// Database, schema and broker answered.
        preflight: bool,
        /// Generation of the plan that the worker would follow.
        plan: i64,
    },
    /// To end the shard's session for good.
    Retire {
        /// Generation of the plan that ends it; none if no plan is asked.
        plan: Option<i64>,
    },
}

/// The lease row as far as the rules look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The holder's instance; none if there never was one, or the shard was retired.
    pub instance: Option<String>,
    /// The holder's rank.
    pub rank: i64,
    /// The holder goes: it retires the shard, or has let go of an expired lease until which it consumed.
    pub retiring: bool,
    /// When it ends.
    pub expires_at: Micros,
    /// Highest plan generation that was followed.
    pub plan_generation: i64,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// Its instance.
    pub instance: String,
    /// Its rank: later registered, higher.
    pub rank: i64,
    /// It may not take an unexpired lease before this, because it lost one.
    pub wait_until: Micros,
    /// This incarnation held the lease before and lost it.
    pub superseded: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Take it. `supersedes`: an unexpired lease of another instance is taken.
    Take {
        /// Another instance loses an unexpired lease.
        supersedes: bool,
    },
    /// It may be taken after a preflight.
    Preflight,
    /// Not now.
    Wait(Wait),
    /// Not by this plan: a newer one is followed.
    Outdated,
}

/// Why not now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Wait {
    /// A retire runs.
    #[error("the shard is being retired")]
    Retiring,
    /// A retire was done: a worker whose end comes late would leave a session behind that nobody ends.
    #[error("the shard was retired; only a newer plan begins it again")]
    Retired,
    /// Another process of the same instance holds it.
    #[error("another process with this --instance runs the shard")]
    SameInstance,
    /// One that registered later holds it.
    #[error("a newer instance runs the shard")]
    Newer,
    /// Its time to wait after a loss is not over.
    #[error("this instance lost the shard before")]
    LostBefore,
}

/// Who may take the lease.
pub fn decide(held: &Held, asker: &Asker, purpose: Purpose, now: Micros) -> Decision {
    // Made by an operator that was no longer the leader: the shard is wanted again.
    if matches!(purpose, Purpose::Retire { plan: Some(plan) } if plan < held.plan_generation) {
        return Decision::Outdated;
    }
    let Some(holder) = &held.instance else {
        // A row that never had a holder has no plan either.
        return match purpose {
            Purpose::Run { plan, .. } if held.plan_generation > 0 && plan <= held.plan_generation => {
                Decision::Wait(Wait::Retired)
            }
            _ => Decision::Take { supersedes: false },
        };
    };
    if *holder == asker.instance && !asker.superseded {
        // Its own old incarnation, which is gone or about to find out.
        return Decision::Take { supersedes: false };
    }
    if now >= held.expires_at {
        return Decision::Take { supersedes: false };
    }
    match purpose {
        Purpose::Run { .. } if held.retiring => Decision::Wait(Wait::Retiring),
        Purpose::Run { .. } if *holder == asker.instance => Decision::Wait(Wait::SameInstance),
        Purpose::Run { .. } if asker.rank <= held.rank => Decision::Wait(Wait::Newer),
        Purpose::Run { .. } if now < asker.wait_until => Decision::Wait(Wait::LostBefore),
        Purpose::Run { preflight: false, .. } => Decision::Preflight,
        Purpose::Retire { .. } | Purpose::Run { preflight: true, .. } => Decision::Take { supersedes: true },
    }
}

/// How often a lease is renewed.
pub const RENEW_EVERY: Duration = Duration::from_secs(5);
/// A holder that is alive renews not later.
const LATE: Duration = Duration::from_secs(6);

/// When the shard was consumed last, as far as its row tells the instance that takes it now.
pub fn consumed_until(held: &Held, asker: &str, now: Micros) -> Option<Micros> {
    let micros = |duration: Duration| duration.as_micros() as Micros;
    let holder = held.instance.as_ref().filter(|_| held.expires_at > 0)?;
    let renewed = held.expires_at - micros(TTL);
    Some(if now >= held.expires_at && held.retiring {
        held.expires_at
    } else if now - renewed > micros(LATE) || holder == asker {
        renewed
    } else {
        now
    })
}

/// How long an instance that lost the lease so many times waits before it takes one by rank.
pub fn wait_after(losses: i32) -> Micros {
    FIRST_WAIT.saturating_mul(1 << losses.clamp(1, 16).saturating_sub(1)).min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(instance: &str, rank: i64, expires_at: Micros) -> Held {
        Held { instance: Some(instance.into()), rank, retiring: false, expires_at, plan_generation: 3 }
    }

    fn asker(instance: &str, rank: i64) -> Asker {
        Asker { instance: instance.into(), rank, wait_until: Micros::MIN, superseded: false }
    }

    const RUN: Purpose = Purpose::Run { preflight: true, plan: 3 };

    #[test]
    fn the_holders_own_instance_retakes_at_once() {
        assert_eq!(decide(&held("a", 1, 100), &asker("a", 1), RUN, 0), Decision::Take { supersedes: false });
    }

    #[test]
    fn two_processes_of_one_instance_do_not_take_the_lease_from_each_other_for_ever() {
        let loser = Asker { superseded: true, ..asker("a", 1) };
        assert!(matches!(decide(&held("a", 1, 100), &loser, RUN, 0), Decision::Wait(_)));
        assert_eq!(decide(&held("a", 1, 100), &loser, RUN, 100), Decision::Take { supersedes: false });
    }

    #[test]
    fn a_newer_instance_takes_over_only_after_a_preflight() {
        let lease = held("a", 1, 100);
        let unproven = Purpose::Run { preflight: false, plan: 3 };
        assert_eq!(decide(&lease, &asker("b", 2), unproven, 0), Decision::Preflight);
        assert_eq!(decide(&lease, &asker("b", 2), RUN, 0), Decision::Take { supersedes: true });
    }

    #[test]
    fn a_retiring_shard_is_not_taken_by_rank() {
        let lease = Held { retiring: true, ..held("a", 1, 100) };
        assert!(matches!(decide(&lease, &asker("b", 2), RUN, 0), Decision::Wait(_)));
        assert_eq!(decide(&lease, &asker("b", 2), RUN, 100), Decision::Take { supersedes: false });
    }

    #[test]
    fn a_plan_that_is_older_than_the_one_that_is_followed_does_not_end_a_shard() {
        let retire = |plan, now| decide(&held("a", 1, 100), &asker("b", 2), Purpose::Retire { plan }, now);
        assert_eq!(retire(Some(2), 0), Decision::Outdated);
        assert_eq!(retire(Some(2), 100), Decision::Outdated, "even if nobody holds it now");
        for plan in [Some(3), Some(4), None] {
            assert_eq!(retire(plan, 0), Decision::Take { supersedes: true });
        }
    }

    #[test]
    fn a_shard_that_was_retired_begins_again_by_a_newer_plan_only() {
        let run = |by, plan| {
            let ended = Held { instance: None, plan_generation: by, ..held("", 0, 0) };
            decide(&ended, &asker("a", 1), Purpose::Run { preflight: false, plan }, 0)
        };
        assert_eq!(run(6, 5), Decision::Wait(Wait::Retired));
        assert_eq!(run(6, 6), Decision::Wait(Wait::Retired), "the plan that ended it, or was followed last");
        assert_eq!(run(6, 7), Decision::Take { supersedes: false });
        assert_eq!(
            run(0, 0),
            Decision::Take { supersedes: false },
            "there are no plans, or nobody ever ran it"
        );
    }

    #[test]
    fn waits_double_from_one_minute_to_ten() {
        let minutes: Vec<_> = (1..7).map(|losses| wait_after(losses) / 60_000_000).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn a_shard_was_consumed_until_it_was_let_go_or_until_its_holder_was_heard_of_last() {
        const S: Micros = 1_000_000;
        let lease = held("a", 1, 100 * S);
        assert_eq!(consumed_until(&lease, "b", 88 * S), Some(88 * S), "alive: until it is taken");
        assert_eq!(consumed_until(&lease, "b", 95 * S), Some(85 * S), "silent since its last renewal");
        assert_eq!(consumed_until(&lease, "b", 103 * S), Some(85 * S));
        assert_eq!(consumed_until(&lease, "a", 88 * S), Some(85 * S), "its own last start ended");
        let gone = Held { retiring: true, ..lease };
        assert_eq!(consumed_until(&gone, "b", 103 * S), Some(100 * S), "it let go at this time");
        assert_eq!(consumed_until(&Held { instance: None, ..gone.clone() }, "b", 0), None);
        assert_eq!(consumed_until(&Held { expires_at: 0, ..gone }, "b", 0), None);
    }

    proptest! {
        #[test]
        fn a_superseded_instance_never_steals_an_unexpired_lease_back(rank in 1i64..100, older in 1i64..100, now in 0i64..1000, expires in 0i64..2000) {
            prop_assume!(older <= rank && now < expires);
            let decision = decide(&held("new", rank, expires), &asker("old", older), RUN, now);
            prop_assert!(matches!(decision, Decision::Wait(_)));
        }

        #[test]
        fn an_expired_lease_is_anyones(rank in 0i64..100, mine in 0i64..100, wait in any::<i64>(), retiring: bool, now in 0i64..1000) {
            let lease = Held { retiring, ..held("a", rank, now) };
            let me = Asker { wait_until: wait, ..asker("b", mine) };
            prop_assert_eq!(decide(&lease, &me, RUN, now), Decision::Take { supersedes: false });
        }

        #[test]
        fn an_instance_that_lost_a_lease_waits_before_it_takes_one_by_rank(now in 0i64..1000, wait in 0i64..2000) {
            let me = Asker { wait_until: wait, ..asker("b", 2) };
            let decision = decide(&held("a", 1, 5000), &me, RUN, now);
            prop_assert_eq!(matches!(decision, Decision::Take { .. }), now >= wait);
        }
    }
}
