//! The port: everything the operator may ask of a market. Domain types only; wire types stay inside each adapter.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tradewind_core::{Capacity, Money, Offer, OrderKey};

/// What a provider can and cannot do, as data, so that callers and the conformance suite choose by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The provider's kind, as in `Provider.spec.kind` (`vast`).
    pub kind: &'static str,
    /// A rental is a container of a given image (else a VM).
    pub container: bool,
    /// Has machines that may be outbid or reclaimed.
    pub spot: bool,
    /// A spot machine goes to the highest bid; else spot has a fixed price and is taken back without one.
    pub bids: bool,
    /// An order key can be put on a machine and read back from lists.
    pub label: bool,
    /// A repeated rent call with the same key rents once.
    pub idempotent_rent: bool,
    /// How long after a rent call a new machine may stay invisible to lists. Unknown orders are looked up for longer than this.
    pub visibility_window: Duration,
    /// How long a rent call may take at most, from its first byte to giving up.
    pub rent_limit: Duration,
    /// Compute is billed from the rent call on, while the image is pulled too; else from the moment the container runs.
    pub starting_costs: bool,
    /// A stopped or outbid machine still costs money for its disk.
    pub stopped_costs: bool,
    /// A machine taken away may come back by itself while it is not terminated.
    pub resumes_by_itself: bool,
    /// A machine can end its own rental.
    pub self_termination: bool,
    /// The longest command text, in characters; what is longer travels in the environment.
    pub max_command_chars: usize,
}

/// A request for one machine.
#[derive(Debug, Clone)]
pub struct RentRequest {
    /// The order's key: idempotency token, name or label of the rental.
    pub key: OrderKey,
    /// What to rent, as the market showed it. For spot `price_per_hour` is the bid.
    pub offer: Offer,
    /// The most that compute may cost an hour. The adapter refuses with [`Refusal::PriceRose`] rather than pay more, where it can know.
    pub price_cap: Money,
    /// Container image.
    pub image: String,
    /// Disk in GiB, at least the provider's minimum.
    pub disk_gib: u64,
    /// Environment of the bootstrap; contains tickets, so it does not print.
    pub env: SecretEnv,
    /// Shell line that fetches and starts the agent (POSIX sh).
    pub bootstrap: String,
}

/// Environment variables whose values never print (they hold signed URLs).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretEnv(pub BTreeMap<String, String>);

impl fmt::Debug for SecretEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What became of a rent call. There is no error beside it: every ending is one of these three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RentOutcome {
    /// The provider's id of the machine that is now ours.
    Rented {
        /// The provider's id.
        id: String,
    },
    /// The provider said no, in words we understood, or was never reached (connect failed).
    Refused {
        /// Why.
        why: Refusal,
        /// One sentence for the user, without secrets.
        message: String,
        /// A machine that was made in spite of the refusal and must be terminated.
        leftover: Option<String>,
    },
    /// It may or may not have happened (timeout, cut answer, unreadable answer, 5xx). Look the key up; never rent again blindly.
    Unknown {
        /// One sentence, without secrets.
        message: String,
    },
}

/// Why a market said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// The offer is gone or taken.
    OutOfStock,
    /// It costs more than our cap, or our bid lost.
    PriceRose,
    /// The account cannot pay.
    OutOfCredit,
    /// The key is not valid or not allowed.
    Unauthorised,
    /// Too many requests; later.
    RateLimited,
    /// The request itself was refused as wrong.
    Invalid,
    /// The provider could not be reached at all; nothing was sent.
    Unreachable,
}

impl Refusal {
    /// The word for reasons and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OutOfStock => "OutOfStock",
            Self::PriceRose => "PriceRose",
            Self::OutOfCredit => "OutOfCredit",
            Self::Unauthorised => "Unauthorised",
            Self::RateLimited => "RateLimited",
            Self::Invalid => "Invalid",
            Self::Unreachable => "Unreachable",
        }
    }

    /// True where the account, not the offer, is the trouble: another offer of the same account would be refused too.
    pub const fn is_about_the_account(self) -> bool {
        matches!(self, Self::OutOfCredit | Self::Unauthorised | Self::RateLimited | Self::Unreachable)
    }
}

/// State of a machine, as far as the provider tells. "Gone" is not among them: gone is what `describe` says by `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineState {
    /// Being made; not yet running.
    Starting,
    /// Its container or VM runs.
    Running,
    /// Stopped by somebody else than us: outbid, reclaimed, host down, account out of credit. Never the job's fault.
    TakenAway,
    /// The boot failed for good (bad image, runtime error), with the provider's words.
    BootFailed {
        /// The provider's message, shortened.
        message: String,
    },
    /// A word we do not know or a state that means nothing yet: not gone, not finished, not crashed.
    Unknown {
        /// The word, shortened.
        word: String,
    },
}

/// One machine of the account, ours or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The provider's id.
    pub id: String,
    /// Our key, if its label is one; else this machine is not ours.
    pub key: Option<OrderKey>,
    /// State.
    pub state: MachineState,
    /// Spot or on demand.
    pub capacity: Capacity,
    /// What compute costs an hour now, if told.
    pub price_per_hour: Option<Money>,
    /// When the provider says that it was made, if told.
    pub created_at: Option<Timestamp>,
}

/// State and identity of the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The provider's id of the account, where it tells one; a change means that the key now belongs to somebody else. `None` = two keys
    /// cannot be told to be of one account by this alone.
    pub id: Option<String>,
    /// Credit left, where told.
    pub credit: Option<Money>,
}

/// What one machine was charged for, GPU, disk and traffic together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// The provider's id of the machine, which may be gone by now or never have been ours.
    pub id: String,
    /// Dollars. Below zero = a refund.
    pub amount: Money,
}

/// How a machine can end its own rental, with a key that the provider itself puts into its environment: no key of ours ever gets there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SelfEnd {
    /// HTTP method.
    pub method: String,
    /// Whole URL.
    pub url: String,
    /// Name of the variable in the machine's environment whose value goes into `Authorization: Bearer`.
    pub bearer_env: String,
}

/// What to look for. Adapters send what the market can filter by; callers filter again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OfferQuery {
    /// At least this many GPUs; 0 = machines without GPU are welcome.
    pub min_gpu_count: u32,
    /// At least this much memory per GPU, MiB.
    pub min_gpu_memory_mib: u64,
    /// Disk that will be asked for, GiB.
    pub disk_gib: u64,
}

/// Why a call failed. What it means for the caller is in the variant; texts carry no secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// The key is not valid or not allowed to do this.
    #[error("{provider} refuses the key: {message}")]
    Unauthorised {
        /// Provider kind.
        provider: &'static str,
        /// The provider's words, shortened.
        message: String,
    },
    /// Too many requests.
    #[error("{provider} asks to wait")]
    RateLimited {
        /// Provider kind.
        provider: &'static str,
        /// How long to wait, if told.
        retry_after: Option<Duration>,
    },
    /// Refused for a reason that will not go away by itself.
    #[error("{provider} refuses {operation}: {message}")]
    Refused {
        /// Provider kind.
        provider: &'static str,
        /// The verb.
        operation: &'static str,
        /// The provider's words, shortened.
        message: String,
    },
    /// An answer that we could not read.
    #[error("{provider} answered {operation} with something unreadable: {message}")]
    Malformed {
        /// Provider kind.
        provider: &'static str,
        /// The verb.
        operation: &'static str,
        /// What was wrong with it, without its content.
        message: String,
    },
    /// No usable answer: connect failed, timeout, cut, 5xx. For calls that change something: may have happened.
    #[error("{provider} did not answer {operation}: {message}")]
    Unavailable {
        /// Provider kind.
        provider: &'static str,
        /// The verb.
        operation: &'static str,
        /// What happened.
        message: String,
    },
}

impl ProviderError {
    /// The word for reasons and metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unauthorised { .. } => "Unauthorised",
            Self::RateLimited { .. } => "RateLimited",
            Self::Refused { .. } => "Refused",
            Self::Malformed { .. } => "Malformed",
            Self::Unavailable { .. } => "Unavailable",
        }
    }
}

/// Result of a call that only reads, or that may be repeated.
pub type ProviderResult<T> = Result<T, ProviderError>;

/// One account on one market.
///
/// In-memory implementations return futures that are ready at the first poll. No verb retries by itself except reads and `terminate`,
/// within their time limit.
pub trait GpuProvider: Send + Sync {
    /// What this provider can do.
    fn capabilities(&self) -> &Capabilities;

    /// What is on the market now. A subset at most: absence proves nothing.
    fn offers<'a>(&'a self, query: &'a OfferQuery) -> BoxFuture<'a, ProviderResult<Vec<Offer>>>;

    /// Rents one machine, at most once. Sends nothing if `not_after` (the clock's monotonic time) has passed, checked right before the
    /// first byte; that is a refusal as [`Refusal::RateLimited`] with nothing left behind: the order may be made again, in its own time.
    fn rent<'a>(&'a self, request: &'a RentRequest, not_after: Duration) -> BoxFuture<'a, RentOutcome>;

    /// One machine by the provider's id; `None` = it does not exist (any more). An error never means gone.
    fn describe<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ProviderResult<Option<Machine>>>;

    /// Every asset of the account, ours or not: all pages, or an error. Never a part.
    fn list_owned(&self) -> BoxFuture<'_, ProviderResult<Vec<Machine>>>;

    /// Asks for the end of a machine. Ok also when it was gone already. Ok is not proof: `describe` is.
    fn terminate<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ProviderResult<()>>;

    /// Identity and health of the account.
    fn account(&self) -> BoxFuture<'_, ProviderResult<Account>>;

    /// The last lines of the machine's output as the provider keeps them; `None` where it keeps none.
    fn logs<'a>(&'a self, id: &'a str, lines: u32) -> BoxFuture<'a, ProviderResult<Option<String>>>;

    /// What the account was charged since `since`, one row a machine, ended ones too: all pages, or an error. `None` = the provider
    /// publishes no charges. They may trail by minutes, and `since` is taken to the start of the provider's own period (an hour, a day):
    /// the sum of a machine that was rented after `since` is its whole bill so far.
    fn charges(&self, since: Timestamp) -> BoxFuture<'_, ProviderResult<Option<Vec<Charge>>>>;

    /// How the machine with this id can end its own rental; `None` where it cannot. Calls nobody.
    fn self_end(&self, id: &str) -> Option<SelfEnd>;
}
