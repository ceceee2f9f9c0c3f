//! How many new series a tenant may begin in a minute. Pure: a bucket of one minute's worth for each
//! tenant, kept as the time at which it is full again.

use std::time::{Duration, Instant};

use hashbrown::HashMap;

const MINUTE: Duration = Duration::from_mins(1);

/// The buckets of all tenants.
#[derive(Debug)]
pub struct SeriesRate {
    /// What a series costs of a minute.
    cost: Duration,
    full_at: HashMap<String, Instant>,
}

impl SeriesRate {
    /// So many series a minute, of each tenant.
    pub fn new(per_minute: u32) -> Self {
        Self { cost: MINUTE / per_minute.max(1), full_at: HashMap::new() }
    }

    /// Takes as many of the wanted series as may begin now.
    pub fn take(&mut self, tenant: &str, wanted: usize, now: Instant) -> usize {
        let full_at = self.full_at.entry_ref(tenant).or_insert(now);
        let missing = full_at.saturating_duration_since(now);
        let there = MINUTE.saturating_sub(missing).as_nanos() / self.cost.as_nanos().max(1);
        let taken = u32::try_from(there.min(wanted as u128)).unwrap_or(u32::MAX);
        *full_at = (*full_at).max(now) + self.cost * taken;
        // A full bucket is like none.
        self.full_at.retain(|_, full_at| *full_at > now);
        taken as usize
    }

    /// How long it takes until so many more may begin.
    pub fn wait(&self, tenant: &str, more: usize, now: Instant) -> Duration {
        let missing = self.full_at.get(tenant).map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let needed = self.cost.saturating_mul(u32::try_from(more).unwrap_or(u32::MAX));
        (missing + needed).saturating_sub(MINUTE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_new_device_is_not_delayed_and_a_flood_of_names_is() {
        let (mut rate, now) = (SeriesRate::new(600), Instant::now());
        assert_eq!(rate.take("a", 200, now), 200);
        assert_eq!(rate.take("a", 1000, now), 400);
        assert_eq!(rate.wait("a", 1, now), Duration::from_millis(100));
        assert_eq!(rate.take("a", 9, now + Duration::from_millis(250)), 2);
        // Another tenant has a bucket of its own.
        assert_eq!(rate.take("b", 600, now), 600);
        assert_eq!(rate.take("a", 1000, now + Duration::from_mins(5)), 600);
    }

    #[test]
    fn tenants_with_full_buckets_are_forgotten() {
        let (mut rate, now) = (SeriesRate::new(60), Instant::now());
        for tenant in 0..100 {
            rate.take(&tenant.to_string(), 1, now);
        }
        rate.take("last", 1, now + Duration::from_secs(2));
        assert_eq!(rate.full_at.len(), 1);
    }

    proptest! {
        #[test]
        fn no_more_begin_than_a_bucket_and_the_rate_allow_and_who_waits_gets_its_turn(
            per_minute in 1u32..10_000,
            asks in prop::collection::vec((0u64..5000, 0usize..2000), 1..50),
        ) {
            let mut rate = SeriesRate::new(per_minute);
            let start = Instant::now();
            let (mut now, mut taken) = (start, 0.0);
            for (pause, wanted) in asks {
                now += Duration::from_millis(pause);
                taken += rate.take("t", wanted, now) as f64;
                let allowed = f64::from(per_minute) * (1.0 + (now - start).as_secs_f64() / 60.0);
                prop_assert!(taken <= allowed * 1.001 + 1.0, "{} of {}", taken, allowed);
                // Nothing is refused for good.
                let later = now + rate.wait("t", 1, now);
                let mut then = SeriesRate { cost: rate.cost, full_at: rate.full_at.clone() };
                prop_assert_eq!(then.take("t", 1, later), 1);
            }
        }
    }
}
