//! While a worker holds the shard's lease: it consumes, follows newer plans, and lets go.

use std::collections::BTreeSet;

use penstock_crds::report::PlanStatus;

use crate::mqtt::session::End;
use crate::retire::RETIRE_TOPIC;
use crate::sessions::Sessions;
use crate::shard::{Shard, Stop};
use crate::tenure::{Superseded, Tenure};

impl Shard {
    /// Consumes until told to stop, or until another has the lease.
    pub(crate) async fn serve(&self, tenure: &Tenure, stop: &Stop) -> End {
        let known = tenure.plan_generation();
        let mut terms = self.terms.clone();
        let first = terms.borrow_and_update().work.clone();
        let filters = if first.generation < known {
            tracing::warn!(
                generation = first.generation,
                known,
                "the plan is older than one followed before; keeping its filters"
            );
            let kept: BTreeSet<String> = tenure.filters_by_session().into_iter().flatten().collect();
            tenure.show_plan(PlanStatus { generation: known, keys: None });
            kept.into_iter().filter(|filter| !filter.starts_with(RETIRE_TOPIC)).collect()
        } else {
            tenure.show_plan(first.status());
            first.filters()
        };
        tenure.follows(first.generation);
        let sessions = Sessions::open(self, tenure, &filters);
        let follow_plan = async {
            let (mut followed, mut last) = (known.max(first.generation), first);
            while terms.changed().await.is_ok() {
                let next = terms.borrow_and_update().work.clone();
                if next == last {
                    continue;
                }
                if next.generation < followed {
                    tracing::warn!(generation = next.generation, followed, "ignoring an older plan");
                    continue;
                }
                followed = next.generation;
                tracing::info!(
                    generation = followed,
                    filters = next.subscriptions.len(),
                    "following a new plan"
                );
                tenure.follows(followed);
                sessions.consume(tenure, &next.filters());
                tenure.show_plan(next.status());
                last = next;
            }
            std::future::pending::<()>().await;
        };
        let until_stop = async {
            tokio::select! {
                () = tenure.keep() => {}
                () = follow_plan => {}
                () = stop.requested() => {
                    tracing::info!(handover = ?stop.handover, "stopping");
                    tenure.release().await;
                    if !stop.handover.is_zero() {
                        let _ = tokio::time::timeout(stop.handover, tenure.handed_over()).await;
                    }
                    sessions.settle();
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = sessions.run(tenure) => {
                if end == End::Superseded {
                    self.disconnected();
                }
                end
            }
            Superseded { by } = tenure.lost() => {
                tracing::warn!(by, "superseded; committing what is in hand");
                self.disconnected();
                End::Superseded
            }
            () = until_stop => End::Superseded,
            () = self.beat() => End::Superseded,
        }
    }

    /// The sessions were dropped with their connections.
    fn disconnected(&self) {
        self.shared.lanes.disconnected();
        self.shared.show_connected();
    }
}
