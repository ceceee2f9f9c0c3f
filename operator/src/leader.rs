//! Takes part in the election of `election`, on a Lease. One that led and lost leaves the process at
//! once: whatever it was about to do is not done.

use std::future::Future;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::{Client, Config};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::apply::written;
use crate::client::{Tenure, connect};
use crate::election::{Candidate, Loss, Step, Terms};
use crate::metrics::Metrics;

/// Which Lease, and for how long.
#[derive(Debug, Clone)]
pub struct Election {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub lease: String,
    /// What this process is called; no other has the name.
    pub me: String,
    /// How long things last.
    pub terms: Terms,
}

/// Whether this process leads, and its way to the API server.
pub struct Leadership {
    /// Reads always, and writes while this process leads.
    pub client: Client,
    /// Becomes true when it leads, and stays so: a process that has lost is gone.
    pub leads: watch::Receiver<bool>,
    term: Option<Term>,
}

struct Term {
    api: Api<Lease>,
    terms: Terms,
    tenure: Tenure,
    stopping: watch::Sender<bool>,
    candidacy: JoinHandle<Candidate>,
}

impl Leadership {
    /// Leads without asking.
    pub fn alone(config: Config, metrics: &Metrics) -> Result<Self, kube::Error> {
        metrics.leader.set(1);
        Ok(Self { client: Client::try_from(config)?, leads: watch::channel(true).1, term: None })
    }

    /// Stands for election until it is told to stop.
    pub fn stand(config: &Config, election: &Election, metrics: &Metrics) -> Result<Self, kube::Error> {
        let (terms, tenure) = (election.terms, Tenure::default());
        // The Lease is written by who does not lead yet.
        let own = connect(config, terms.delivery(), None)?;
        let api: Api<Lease> = Api::namespaced(own, &election.namespace);
        let (leading, leads) = watch::channel(false);
        let (stopping, stop) = watch::channel(false);
        let candidacy = Candidacy {
            api: api.clone(),
            election: election.clone(),
            tenure: tenure.clone(),
            leading,
            metrics: metrics.clone(),
        };
        let watched = tenure.clone();
        std::thread::spawn(move || end_in_time(&watched, terms.retry()));
        let candidacy = tokio::spawn(candidacy.run(stop));
        let client = connect(config, terms.delivery(), Some(tenure.clone()))?;
        Ok(Self { client, leads, term: Some(Term { api, terms, tenure, stopping, candidacy }) })
    }

    /// Gives the lease back, after the last write, so that another takes it at once.
    pub async fn release(self) {
        let Some(Term { api, terms, tenure, stopping, candidacy }) = self.term else { return };
        stopping.send_replace(true);
        let Ok(candidate) = candidacy.await else { return };
        tenure.end();
        let Some(lease) = candidate.released(Timestamp::now()) else { return };
        let name = lease.metadata.name.clone().unwrap_or_default();
        match answer(terms.retry(), api.replace(&name, &written(), &lease)).await {
            Ok(_) => tracing::info!("the lease is released"),
            Err(error) => tracing::warn!(%error, "the lease could not be released: it expires"),
        }
    }
}

/// On a thread of its own: a runtime that hangs, or that was frozen with the process, ends as well.
fn end_in_time(tenure: &Tenure, pause: Duration) {
    loop {
        let now = Instant::now();
        match tenure.until() {
            Some(until) if until <= now => leave(Loss::NotRenewed, ""),
            until => std::thread::sleep(until.map_or(pause, |until| until - now)),
        }
    }
}

fn leave(loss: Loss, holder: &str) -> ! {
    tracing::error!(reason = loss.reason(), holder, "this replica leads no longer: it ends at once");
    std::process::exit(1)
}

struct Candidacy {
    api: Api<Lease>,
    election: Election,
    tenure: Tenure,
    leading: watch::Sender<bool>,
    metrics: Metrics,
}

impl Candidacy {
    async fn run(self, mut stop: watch::Receiver<bool>) -> Candidate {
        let Election { me, lease: name, terms, .. } = &self.election;
        let mut candidate = Candidate::new(me.clone(), *terms, Instant::now());
        while !*stop.borrow_and_update() {
            let begun = Instant::now();
            let patience = terms.deadline() / 2;
            let written = match candidate.decide(begun, Timestamp::now()) {
                Step::Wait(pause) => {
                    let _ = tokio::time::timeout(pause, stop.changed()).await;
                    continue;
                }
                Step::Lost(loss) => leave(loss, candidate.holder()),
                Step::Look => {
                    let before = candidate.holder().to_owned();
                    match answer(patience, self.api.get_opt(name)).await {
                        Ok(lease) => candidate.saw(lease, Instant::now()),
                        Err(error) => {
                            tracing::warn!(%error, "the lease could not be read");
                            candidate.failed(begun);
                        }
                    }
                    let holder = candidate.holder();
                    if holder != before && !holder.is_empty() && holder != me {
                        tracing::info!(holder, "another replica leads");
                    }
                    self.metrics.transitions.set(candidate.transitions().into());
                    continue;
                }
                Step::Create(mut lease) => {
                    lease.metadata.name = Some(name.clone());
                    answer(patience, self.api.create(&written(), &lease)).await
                }
                Step::Acquire(lease) | Step::Renew(lease) => {
                    answer(patience, self.api.replace(name, &written(), &lease)).await
                }
            };
            match written {
                Ok(lease) => {
                    candidate.wrote(lease, begun);
                    self.lead(&candidate);
                }
                Err(Unanswered::Api(kube::Error::Api(status)))
                    if status.is_conflict() || status.is_already_exists() || status.is_not_found() =>
                {
                    candidate.conflicted(Instant::now());
                }
                Err(error) => {
                    tracing::warn!(%error, "the lease could not be written");
                    candidate.failed(begun);
                }
            }
        }
        candidate
    }

    fn lead(&self, candidate: &Candidate) {
        self.tenure.extend(candidate.leads_until());
        self.metrics.transitions.set(candidate.transitions().into());
        if !self.leading.send_replace(true) {
            self.metrics.leader.set(1);
            tracing::info!(
                holder = candidate.holder(),
                transitions = candidate.transitions(),
                "this replica leads"
            );
        }
    }
}

/// Why nothing is known of a request.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("the API server: {0}")]
    Api(kube::Error),
    #[error("the API server did not answer within {0:?}")]
    Late(Duration),
}

async fn answer<T>(
    patience: Duration,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Unanswered> {
    match tokio::time::timeout(patience, request).await {
        Ok(answer) => answer.map_err(Unanswered::Api),
        Err(_) => Err(Unanswered::Late(patience)),
    }
}
