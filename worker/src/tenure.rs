//! A held lease: renewed in the background, and asked before anything that only its holder may do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use penstock_crds::report::{LeaseStatus, PlanStatus};
use sqlx::PgPool;
use tokio::sync::{Notify, watch};

use crate::decode::Decoder;
use crate::store::holding::Holding;
use crate::store::lease::{Kept, LeaseError, LeaseKey, LeaseRow, Me};
use crate::store::lease_rules::RENEW_EVERY;
use crate::store::{births, connection};

/// How often the database is asked again while an answer is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why a worker waits that could run the shard.
pub const NOT_HELD: &str = "lease_not_held";

/// Another worker holds the lease now.
#[derive(Debug, thiserror::Error)]
#[error("the lease passed to {by}")]
pub struct Superseded {
    /// The holder.
    pub by: String,
}

/// The lease as the pages show it.
#[derive(Debug, Default)]
pub struct LeaseView {
    state: Mutex<View>,
}

#[derive(Debug, Default)]
struct View {
    lease: LeaseStatus,
    /// A bounded word for why it is not held.
    reason: &'static str,
    /// The plan that is followed, while the lease is held.
    plan: Option<PlanStatus>,
}

impl LeaseView {
    fn state(&self) -> MutexGuard<'_, View> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this worker runs the shard.
    pub fn is_held(&self) -> bool {
        self.state().lease.held
    }

    /// Why it does not: a bounded word, and for a person.
    pub fn explain(&self) -> (&'static str, String) {
        let state = self.state();
        (state.reason, state.lease.why.clone())
    }

    /// For `/status`.
    pub fn status(&self) -> (LeaseStatus, Option<PlanStatus>) {
        let state = self.state();
        (state.lease.clone(), state.plan.clone())
    }

    /// Shows which plan is followed.
    pub fn following(&self, plan: PlanStatus) {
        let mut state = self.state();
        state.plan = Some(plan).filter(|_| state.lease.held);
    }

    /// Shows the highest plan generation of a shard that another runs or nobody does.
    pub fn saw_plan(&self, generation: i64) {
        self.state().lease.plan_generation = generation;
    }

    /// Shows why the lease is not held.
    pub fn waiting(&self, reason: &'static str, why: String) {
        let mut state = self.state();
        state.reason = reason;
        state.lease.held = false;
        state.lease.why = why;
        state.plan = None;
    }
}

/// What is known of the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hold {
    /// Ours when the database was asked last.
    Held,
    /// Ours until another takes it; not prolonged.
    Released,
    /// Another's.
    Lost(String),
}

/// A held lease.
#[derive(Debug)]
pub struct Tenure {
    pool: PgPool,
    key: LeaseKey,
    me: Me,
    hold: watch::Sender<Hold>,
    row: Mutex<LeaseRow>,
    /// Told when the row has something to note.
    news: Notify,
    view: Arc<LeaseView>,
}

impl Tenure {
    /// A lease that was acquired.
    pub fn new(pool: PgPool, key: LeaseKey, me: Me, row: LeaseRow, view: Arc<LeaseView>) -> Self {
        {
            let state = &mut view.state().lease;
            state.held = true;
            state.why.clear();
            state.plan_generation = row.plan_generation;
            state.filters = row.sessions.iter().flatten().cloned().collect();
        }
        let (hold, row) = (watch::Sender::new(Hold::Held), Mutex::new(row));
        Self { pool, key, me, hold, row, news: Notify::new(), view }
    }

    fn holding(&self) -> Holding<'_> {
        let Self { pool, key, me, .. } = self;
        Holding { pool, key, me, plan: self.plan_generation() }
    }

    fn row(&self) -> MutexGuard<'_, LeaseRow> {
        self.row.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the database says that the lease is held. To be asked before each connection: a
    /// newer instance may take a lease that has not expired, and its connection ends ours.
    pub async fn confirmed(&self) -> Result<(), Superseded> {
        let mut hold = self.hold.subscribe();
        loop {
            let state = hold.borrow_and_update().clone();
            match state {
                Hold::Lost(by) => return Err(Superseded { by }),
                // From here on no connection is opened.
                Hold::Released => {
                    let _ = hold.changed().await;
                    continue;
                }
                Hold::Held => {}
            }
            if self.renew().await? {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until another holds the lease.
    pub async fn lost(&self) -> Superseded {
        let mut hold = self.hold.subscribe();
        loop {
            if let Hold::Lost(by) = hold.borrow_and_update().clone() {
                return Superseded { by };
            }
            if hold.changed().await.is_err() {
                return Superseded { by: "nobody".into() };
            }
        }
    }

    /// Keeps the lease until another has it.
    pub async fn keep(&self) {
        while self.renew().await.is_ok() {
            tokio::select! {
                () = tokio::time::sleep(RENEW_EVERY) => {}
                () = self.news.notified() => {}
            }
        }
    }

    /// Lets another take the lease at once.
    pub async fn release(&self) {
        self.hold.send_if_modified(|hold| {
            let held = *hold == Hold::Held;
            if held {
                *hold = Hold::Released;
            }
            held
        });
        let released = self.holding().release().await;
        let _ = self.note(released);
    }

    /// Waits until another has the lease after it was released.
    pub async fn handed_over(&self) {
        while !matches!(*self.hold.borrow(), Hold::Lost(_)) {
            tokio::time::sleep(LOOK_EVERY).await;
            let still = self.holding().release().await;
            let _ = self.note(still);
        }
    }

    /// Prolongs the lease. Whether the database confirmed it; no answer is no loss.
    async fn renew(&self) -> Result<bool, Superseded> {
        let holding = self.holding();
        let renewed = holding.renew().await;
        let confirmed = self.note(renewed)?;
        if confirmed {
            let state = &mut self.view.state().lease;
            state.plan_generation = state.plan_generation.max(holding.plan);
        }
        Ok(confirmed)
    }

    /// Takes in an answer: whether it confirmed the lease, or none came, or the lease is lost.
    fn note(&self, answer: Result<Kept, LeaseError>) -> Result<bool, Superseded> {
        match answer {
            Ok(Kept::Held) => Ok(true),
            Ok(Kept::Superseded { by }) => {
                tracing::warn!(by, "another worker took the shard over");
                self.view.waiting(NOT_HELD, format!("superseded by {by}"));
                self.hold.send_replace(Hold::Lost(by.clone()));
                Err(Superseded { by })
            }
            Err(error) => {
                tracing::debug!(%error, "no answer about the lease");
                Ok(false)
            }
        }
    }

    /// Has the decoder know the births that others have stored.
    pub async fn teach_births(&self, decoder: &Decoder) -> Result<(), sqlx::Error> {
        let mut connection = connection::borrow(&self.pool).await?;
        births::teach(decoder, &mut connection).await?;
        connection.give_back();
        Ok(())
    }

    /// Notes what is about to be subscribed by one of the sessions, before it is. Returns filters that
    /// this session still has and nobody wants of it.
    pub async fn subscribing(&self, session: u8, wanted: &[String]) -> Result<Vec<String>, LeaseError> {
        let (new, stale): (Vec<String>, Vec<String>) = {
            let mut row = self.row();
            let known = row.of(session);
            (
                wanted.iter().filter(|filter| !known.contains(filter)).cloned().collect(),
                known.iter().filter(|filter| !wanted.contains(filter)).cloned().collect(),
            )
        };
        if !new.is_empty() {
            let kept = self.holding().add_filters(session, &new).await?;
            if self.note(Ok(kept)).is_err() {
                return Err(LeaseError::Superseded);
            }
            self.row().of(session).extend(new);
            self.show_filters();
        }
        Ok(stale)
    }

    /// Notes that the session no longer has the filter.
    pub async fn unsubscribed(&self, session: u8, filter: &str) -> Result<(), LeaseError> {
        let kept = self.holding().remove_filters(session, &[filter.to_owned()]).await?;
        if self.note(Ok(kept)).is_ok() {
            self.row().of(session).retain(|known| known != filter);
            self.show_filters();
        }
        Ok(())
    }

    /// Filters that one of the broker's sessions may have.
    pub fn filters_of(&self, session: u8) -> Vec<String> {
        self.row().sessions.get(usize::from(session)).cloned().unwrap_or_default()
    }

    /// The same of all sessions.
    pub fn filters_by_session(&self) -> Vec<Vec<String>> {
        self.row().sessions.clone()
    }

    /// Highest plan generation that was followed.
    pub fn plan_generation(&self) -> i64 {
        self.row().plan_generation
    }

    /// A plan of this generation is followed. To be called before its filters are subscribed: the row has it
    /// with the first of them, or with the next renewal that the database answers.
    pub fn follows(&self, generation: i64) {
        {
            let mut row = self.row();
            row.plan_generation = row.plan_generation.max(generation);
        }
        self.news.notify_one();
    }

    /// Shows which plan is followed.
    pub fn show_plan(&self, plan: PlanStatus) {
        self.view.following(plan);
    }

    fn show_filters(&self) {
        let filters = self.row().sessions.iter().flatten().cloned().collect();
        self.view.state().lease.filters = filters;
    }

    /// Whether the broker should have the session.
    pub fn session_existed(&self, session: u8) -> bool {
        self.row().existed.contains(&session)
    }

    /// Notes that the broker has the session. Of others than the first their filters tell.
    pub async fn session_exists(&self, session: u8) -> Result<(), LeaseError> {
        if session == 0 {
            let kept = self.holding().set_session_existed().await?;
            if self.note(Ok(kept)).is_err() {
                return Err(LeaseError::Superseded);
            }
        }
        self.row().existed.insert(session);
        Ok(())
    }

    /// Notes that the session was ended.
    pub fn session_ended(&self, session: u8) {
        self.row().existed.remove(&session);
    }
}

#[cfg(test)]
mod tests {
    use crate::shard::tests::lonely;
    use crate::store::lease::LeaseRow;

    #[tokio::test]
    async fn a_plan_is_to_be_noted_until_a_newer_one_is_followed() {
        let row = LeaseRow { plan_generation: 5, ..LeaseRow::default() };
        let tenure = lonely().tenure(row);
        tenure.follows(7);
        assert_eq!(tenure.plan_generation(), 7, "it would be forgotten while the database is away");
        tenure.follows(6);
        assert_eq!(tenure.plan_generation(), 7);
    }
}
