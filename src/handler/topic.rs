//! A topic as code states it: its name, its class, how its messages decode, and any policy that the file does not say.
//!
//! Nothing is checked here. What code says becomes the weakest layer under environment and file, and `run` checks the
//! whole, before anything connects.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::context::Context;
use super::decode::{Decode, Json, Undecoded};
use super::error::HandlerError;
use super::reply::Probe;
use super::token::{Readers, Token};
use crate::class::Class;
use crate::config::{
    AfterFailure, AfterHold, ByteCount, Concurrency, Expired, MissingToken, Mode, OnMismatch, OnUseless,
    Renewal, Share, TopicLayer,
};

/// How long, in log time, the outcome of a token is remembered.
///
/// There is no default: how late a duplicate can come is a fact about the producers. See
/// [`TopicPolicy::window`](crate::config::TopicPolicy::window) for what goes wrong when it is too small or too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window(Duration);

impl Window {
    /// That many days of 24 hours.
    #[must_use]
    pub const fn days(days: u64) -> Self {
        Self::hours(days.saturating_mul(24))
    }

    /// That many hours.
    #[must_use]
    pub const fn hours(hours: u64) -> Self {
        Self::minutes(hours.saturating_mul(60))
    }

    /// That many minutes.
    #[must_use]
    pub const fn minutes(minutes: u64) -> Self {
        Self::seconds(minutes.saturating_mul(60))
    }

    /// That many seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Any duration.
    #[must_use]
    pub const fn of(duration: Duration) -> Self {
        Self(duration)
    }

    /// The duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl From<Duration> for Window {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

type ProbeFuture = Pin<Box<dyn Future<Output = Result<Probe, HandlerError>> + Send>>;

/// A probe with its types erased: it is asked once per doubt, so it may allocate.
pub(super) type ProbeFn<M, S> = Arc<dyn Fn(M, Context<S>) -> ProbeFuture + Send + Sync>;

/// One topic: where its messages come from, what they decode to, and what repeating its handler would do.
///
/// Name, class and decoder are arguments because they have no default. The window has none either, but may be stated in
/// the file instead. Everything else has a default, named at each method; the file and the environment win over code.
///
/// ```
/// use hapax::{NonIdempotent, Token, Topic, Window};
///
/// #[derive(serde::Deserialize)]
/// struct Payment { id: String, cents: u64 }
///
/// let payments = Topic::json::<Payment>("payments", NonIdempotent)
///     .window(Window::days(7))
///     .token(Token::header("idempotency-key"))
///     .token(Token::json("/id"))
///     .by_key(16);
/// # let _ = payments;
/// ```
#[must_use = "a topic does nothing until a consumer handles it"]
pub struct Topic<D: Decode, S = ()> {
    pub(super) name: String,
    pub(super) layer: TopicLayer,
    pub(super) readers: Readers,
    pub(super) decode: D,
    pub(super) state: S,
    pub(super) probe: Option<ProbeFn<D::Message, S>>,
}

impl Topic<Undecoded> {
    /// Messages as JSON. A tombstone reads as `null`: take `Option<T>` where tombstones are expected. What does not
    /// decode is dead-lettered with reason `malformed`.
    pub fn json<T: DeserializeOwned + Send + 'static>(
        name: impl Into<String>,
        class: Class,
    ) -> Topic<Json<T>> {
        Topic::with(name, class, Json::new())
    }

    /// Messages as [`Bytes`](bytes::Bytes), not copied; a tombstone is empty. See [`Undecoded`].
    pub fn bytes(name: impl Into<String>, class: Class) -> Self {
        Self::with(name, class, Undecoded)
    }
}

impl<D: Decode> Topic<D> {
    /// Messages as that decoder reads them.
    pub fn with(name: impl Into<String>, class: Class, decode: D) -> Self {
        let layer = TopicLayer {
            class: Some(class),
            ..TopicLayer::default()
        };
        Self {
            name: name.into(),
            layer,
            readers: Readers::default(),
            decode,
            state: (),
            probe: None,
        }
    }

    /// What the handler and the probe share: a client, a pool, an `Arc` of either. It is cloned for each call, and read
    /// with [`Context::state`].
    ///
    /// State it before the [`probe`](Topic::probe) that uses it: a probe given earlier keeps its `Context<()>`.
    pub fn state<S: Clone + Send + Sync + 'static>(self, state: S) -> Topic<D, S> {
        let probe = self.probe.map(|probe| -> ProbeFn<D::Message, S> {
            Arc::new(move |message, cx: Context<S>| probe(message, cx.without_state()))
        });
        Topic {
            name: self.name,
            layer: self.layer,
            readers: self.readers,
            decode: self.decode,
            state,
            probe,
        }
    }
}

/// What may be left to the file or to its default.
impl<D: Decode, S> Topic<D, S> {
    /// Asks the resource what became of an attempt whose end nobody knows. [`Probe`] says what each answer claims; an
    /// `Err`, a panic and a time-out count as [`Probe::Unknown`].
    ///
    /// The future may be dropped at any await (its deadline, a revoked partition). A probe must have no effects; it may
    /// be asked more than once. Default: none, and what is in doubt takes the rule of its class.
    pub fn probe<P, Fut>(mut self, probe: P) -> Self
    where
        P: Fn(D::Message, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Probe, HandlerError>> + Send + 'static,
    {
        self.probe = Some(Arc::new(move |message, cx| Box::pin(probe(message, cx))));
        self
    }

    /// How long the outcome of a token is remembered. Required, here or in the file.
    pub fn window(mut self, window: impl Into<Window>) -> Self {
        self.layer.window = Some(window.into().duration());
        self
    }

    /// The most disk that the window may take in this process. Default: no limit but the disk.
    ///
    /// At the limit the window is shortened: [`TopicPolicy::window_bytes`](crate::config::TopicPolicy::window_bytes).
    pub fn window_bytes(mut self, bytes: ByteCount) -> Self {
        self.layer.window_bytes = Some(bytes);
        self
    }

    /// Reads the token there, too: every source that a message has counts, in the order they are stated. Default: the
    /// header `idempotency-key`, which stops being read once another source is stated.
    pub fn token(mut self, token: Token) -> Self {
        self.layer.token.get_or_insert_default().push(token.source());
        self.readers.add(token);
        self
    }

    /// What becomes of a message without a token. Default: `DeadLetter` for `NonIdempotent`, otherwise `UseOffset`.
    pub fn missing_token(mut self, then: MissingToken) -> Self {
        self.layer.missing_token = Some(then);
        self
    }

    /// One message of a partition at a time, in offset order. Default: [`by_key(16)`](Self::by_key).
    pub fn ordered(mut self) -> Self {
        self.layer.concurrency = Some(Concurrency::Ordered);
        self
    }

    /// That many messages of a partition at a time, those of one key one after the other. Default: this, with 16.
    ///
    /// # Panics
    /// Where `slots` is 0: nothing could ever run.
    pub fn by_key(mut self, slots: u32) -> Self {
        self.layer.concurrency = Some(Concurrency::by_key(slots));
        self
    }

    /// That many messages of a partition at a time, in any order. Default: [`by_key(16)`](Self::by_key).
    ///
    /// # Panics
    /// Where `slots` is 0: nothing could ever run.
    pub fn unordered(mut self, slots: u32) -> Self {
        self.layer.concurrency = Some(Concurrency::unordered(slots));
        self
    }

    /// Messages begun before a slot is free. Each is one more that a kill leaves in doubt. Default: 0.
    pub fn begun_ahead(mut self, messages: usize) -> Self {
        self.layer.begun_ahead = Some(messages);
        self
    }

    /// How long one attempt may take. Then its future is dropped, and it may have applied something; tasks that it
    /// spawned go on. Default: 10 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.layer.deadline = Some(deadline);
        self
    }

    /// How long one probe may take. Then it counts as [`Probe::Unknown`]. Default: 5 s.
    pub fn probe_deadline(mut self, deadline: Duration) -> Self {
        self.layer.probe_deadline = Some(deadline);
        self
    }

    /// How long after the deadline of an attempt its probe waits, so that what was sent can land. Default: 1 s.
    pub fn probe_settle(mut self, wait: Duration) -> Self {
        self.layer.probe_settle = Some(wait);
        self
    }

    /// How long the downstream remembers a child token: so long after its begin a `PotentiallyIdempotent` attempt of
    /// unknown end runs again. Default: the window, at most 24 h.
    pub fn rerun_within(mut self, within: Duration) -> Self {
        self.layer.rerun_within = Some(within);
        self
    }

    /// How often a message is attempted while it keeps its slot, and how long after its first attempt the last one of
    /// these may start. Default: 5 attempts within 30 s, for all topics.
    pub fn retry(mut self, attempts: u32, total: Duration) -> Self {
        self.layer.retry.in_place.attempts = Some(attempts);
        self.layer.retry.in_place.total = Some(total);
        self
    }

    /// How often a message is attempted in all, and how long after its first begin or hold the last one may be due: once
    /// the attempts in place are spent it is held on disk between the others. Default: 20 attempts within 24 h, for all
    /// topics. No more than in place, and it is dead-lettered when those are spent.
    pub fn retry_overall(mut self, attempts: u32, total: Duration) -> Self {
        self.layer.retry.overall.attempts = Some(attempts);
        self.layer.retry.overall.total = Some(total);
        self
    }

    /// The longest wait before the first attempt after those in place, and between any two of those that follow. Default:
    /// 30 s and 1 h, for all topics.
    pub fn backoff_overall(mut self, first: Duration, max: Duration) -> Self {
        self.layer.retry.overall.first = Some(first);
        self.layer.retry.overall.max = Some(max);
        self
    }

    /// What becomes of later messages of a key while one of them is held for a retry. Default:
    /// [`BlockKey`](AfterHold::BlockKey).
    pub fn after_hold(mut self, then: AfterHold) -> Self {
        self.layer.after_hold = Some(then);
        self
    }

    /// What becomes of later messages of a key while one of them is held in doubt. Default:
    /// [`Release`](AfterHold::Release).
    pub fn after_doubt(mut self, then: AfterHold) -> Self {
        self.layer.after_doubt = Some(then);
        self
    }

    /// The topics that the handler [emits](crate::Context::emit) to, and no other: a start looks whether they are there, and take
    /// the largest output. Default: any, and none is looked for.
    pub fn outputs<N: Into<String>>(mut self, topics: impl IntoIterator<Item = N>) -> Self {
        self.layer.outputs.topics = Some(topics.into_iter().map(Into::into).collect());
        self
    }

    /// Where a message's reply goes: to the topic that its header of that name names, where it is one of `allowed`. A duplicate is
    /// given the outcome again. Default: nowhere.
    pub fn reply_to<N: Into<String>>(
        mut self,
        header: impl Into<String>,
        allowed: impl IntoIterator<Item = N>,
    ) -> Self {
        self.layer.reply.header = Some(header.into());
        self.layer.reply.allowed = Some(allowed.into_iter().map(Into::into).collect());
        self
    }

    /// The topic in which whoever sent a message is told that it was suppressed or refused, and why. Default: nobody is told.
    pub fn receipts(mut self, topic: impl Into<String>) -> Self {
        self.layer.receipts.topic = Some(topic.into());
        self
    }

    /// The longest wait before the second attempt, and between any two in place. In between it doubles; each wait is drawn from
    /// zero to that. Default: 100 ms and 10 s, for all topics.
    pub fn backoff(mut self, first: Duration, max: Duration) -> Self {
        self.layer.retry.in_place.first = Some(first);
        self.layer.retry.in_place.max = Some(max);
        self
    }

    /// How many of all attempts may be retries, and how many a second beside those. One that has to wait for its turn waits;
    /// nothing is given up for it. `Share::ALL`: no budget. Default: 0.2 and 10 a second, for all topics.
    pub fn retry_budget(mut self, share: Share, per_second: u32) -> Self {
        self.layer.retry.budget.share = Some(share);
        self.layer.retry.budget.per_second = Some(per_second);
        self
    }

    /// At which share of failures, among how many of the latest attempts, attempts stop, and for how long; then single ones
    /// are made until three in a row have succeeded. Over 0: never. Default: one half of 100, for 10 s, for all topics.
    ///
    /// [`config::Breaker`](crate::config::Breaker) says what counts as a failure, and what becomes of messages meanwhile.
    pub fn breaker(mut self, failure_share: Share, over: u32, open_for: Duration) -> Self {
        self.layer.breaker.failure_share = Some(failure_share);
        self.layer.breaker.over = Some(over);
        self.layer.breaker.open_for = Some(open_for);
        self
    }

    /// The fields, by JSON pointer, that must be equal under one token, and what becomes of a message where they are
    /// not. Default: the whole payload is compared, and a difference only counted.
    pub fn mismatch<F: Into<String>>(
        mut self,
        fields: impl IntoIterator<Item = F>,
        then: OnMismatch,
    ) -> Self {
        self.layer.mismatch.fields = Some(fields.into_iter().map(Into::into).collect());
        self.layer.mismatch.then = Some(then);
        self
    }

    /// What becomes of a duplicate whose first message failed. Default: `Run` for `Idempotent`, otherwise `Suppress`.
    pub fn after_failure(mut self, then: AfterFailure) -> Self {
        self.layer.after_failure = Some(then);
        self
    }

    /// What becomes of a message whose token was born before the window. Default: `DeadLetter`.
    pub fn expired(mut self, then: Expired) -> Self {
        self.layer.expired = Some(then);
        self
    }

    /// Whether a suppressed duplicate starts the window of its token anew. Default: `Never`.
    pub fn renewal(mut self, renewal: Renewal) -> Self {
        self.layer.renewal = Some(renewal);
        self
    }

    /// How old a message may be, by its timestamp, when an attempt at it starts, and what becomes of it then. Default: no message
    /// is too old.
    pub fn max_age(mut self, after: Duration, then: OnUseless) -> Self {
        self.layer.max_age.after = Some(after);
        self.layer.max_age.then = Some(then);
        self
    }

    /// The header by which a message states its own maximal age, in decimal milliseconds. Default: none is read.
    pub fn max_age_header(mut self, name: impl Into<String>) -> Self {
        self.layer.max_age.header = Some(name.into());
        self
    }

    /// Judges, records and counts, and suppresses nothing: duplicates run. For the first days of a topic, to see what
    /// would be. Default: verdicts are enforced.
    pub fn observe(mut self) -> Self {
        self.layer.mode = Some(Mode::Observe);
        self
    }

    /// Whether the handler runs on a thread of its own: for one that blocks or computes, and would stall every other
    /// slot of its partition. Such a thread cannot be cancelled: at the deadline the handler goes on. Default: false.
    pub fn offload(mut self, offload: bool) -> Self {
        self.layer.offload = Some(offload);
        self
    }

    /// Whether the reply is stored with the outcome, up to `outcome_bytes`. Default: true.
    pub fn store_outcome(mut self, store: bool) -> Self {
        self.layer.store_outcome = Some(store);
        self
    }
}

impl<D: Decode, S> fmt::Debug for Topic<D, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic")
            .field("name", &self.name)
            .field("layer", &self.layer)
            .field("probe", &self.probe.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::Class::NonIdempotent;
    use crate::config::TokenSource;

    #[test]
    fn windows_are_what_they_say() {
        assert_eq!(Window::days(2), Window::hours(48));
        assert_eq!(Window::hours(1).duration(), Duration::from_secs(3_600));
        assert_eq!(Window::minutes(1), Window::seconds(60));
        assert_eq!(
            Window::of(Duration::from_millis(5)).duration(),
            Duration::from_millis(5)
        );
        assert_eq!(
            Window::days(u64::MAX).duration(),
            Duration::from_secs(u64::MAX),
            "no overflow"
        );
    }

    #[test]
    fn code_says_only_what_was_written() {
        let TopicLayer {
            class,
            window,
            token,
            concurrency,
            retry,
            mismatch,
            deadline,
            mode,
            ..
        } = Topic::bytes("orders", NonIdempotent).layer;
        assert_eq!(
            (class, window, token, concurrency),
            (Some(NonIdempotent), None, None, None)
        );
        assert_eq!(
            (retry.in_place.attempts, mismatch.then, deadline, mode),
            (None, None, None, None)
        );
    }

    #[test]
    fn each_method_says_its_own_key() {
        let seconds = Duration::from_secs;
        let layer = Topic::bytes("orders", NonIdempotent)
            .window(Window::hours(24))
            .window_bytes(ByteCount::gib(1))
            .missing_token(MissingToken::Stop)
            .by_key(3)
            .begun_ahead(4)
            .deadline(seconds(5))
            .probe_deadline(seconds(6))
            .probe_settle(seconds(7))
            .rerun_within(seconds(8))
            .retry(9, seconds(10))
            .backoff(seconds(11), seconds(12))
            .retry_budget(Share::percent(13), 14)
            .breaker(Share::percent(15), 16, seconds(17))
            .mismatch(["/cents"], OnMismatch::Suppress)
            .after_failure(AfterFailure::Run)
            .expired(Expired::Run)
            .renewal(Renewal::OnDuplicate)
            .max_age(seconds(18), OnUseless::Skip)
            .max_age_header("useless-after")
            .observe()
            .offload(true)
            .store_outcome(false)
            .outputs(["shipments"])
            .reply_to("reply-to", ["replies"])
            .receipts("receipts")
            .layer;
        assert_eq!(layer.reply.header.as_deref(), Some("reply-to"));
        assert_eq!(layer.reply.allowed, Some(vec!["replies".to_owned()]));
        assert_eq!(layer.receipts.topic.as_deref(), Some("receipts"));
        assert_eq!(layer.outputs.topics, Some(vec!["shipments".to_owned()]));
        assert_eq!(
            (layer.window, layer.window_bytes),
            (Some(seconds(86_400)), Some(ByteCount::gib(1)))
        );
        assert_eq!(layer.missing_token, Some(MissingToken::Stop));
        assert_eq!(
            (layer.concurrency, layer.begun_ahead),
            (Some(Concurrency::by_key(3)), Some(4))
        );
        assert_eq!(
            (layer.deadline, layer.probe_deadline),
            (Some(seconds(5)), Some(seconds(6)))
        );
        assert_eq!(
            (layer.probe_settle, layer.rerun_within),
            (Some(seconds(7)), Some(seconds(8)))
        );
        assert_eq!(
            (layer.retry.in_place.attempts, layer.retry.in_place.total),
            (Some(9), Some(seconds(10)))
        );
        assert_eq!(
            (layer.retry.in_place.first, layer.retry.in_place.max),
            (Some(seconds(11)), Some(seconds(12)))
        );
        assert_eq!(
            (layer.retry.budget.share, layer.retry.budget.per_second),
            (Some(Share::percent(13)), Some(14))
        );
        assert_eq!(
            (
                layer.breaker.failure_share,
                layer.breaker.over,
                layer.breaker.open_for
            ),
            (Some(Share::percent(15)), Some(16), Some(seconds(17)))
        );
        assert_eq!(layer.mismatch.fields, Some(vec!["/cents".to_owned()]));
        assert_eq!(layer.mismatch.then, Some(OnMismatch::Suppress));
        assert_eq!(
            (layer.after_failure, layer.expired),
            (Some(AfterFailure::Run), Some(Expired::Run))
        );
        assert_eq!(layer.renewal, Some(Renewal::OnDuplicate));
        assert_eq!(
            (layer.max_age.after, layer.max_age.header, layer.max_age.then),
            (
                Some(seconds(18)),
                Some("useless-after".to_owned()),
                Some(OnUseless::Skip)
            )
        );
        assert_eq!((layer.mode, layer.offload), (Some(Mode::Observe), Some(true)));
        assert_eq!(layer.store_outcome, Some(false));
        let concurrency = |topic: Topic<Undecoded>| topic.layer.concurrency;
        assert_eq!(
            concurrency(Topic::bytes("o", NonIdempotent).ordered()),
            Some(Concurrency::Ordered)
        );
        assert_eq!(
            concurrency(Topic::bytes("o", NonIdempotent).unordered(2)),
            Some(Concurrency::unordered(2))
        );
    }

    #[test]
    fn token_sources_keep_their_order() {
        let topic = Topic::bytes("orders", NonIdempotent)
            .token(Token::with("tail", |raw| raw.key().map(<[u8]>::to_vec)))
            .token(Token::key());
        let sources = topic.layer.token.unwrap();
        assert_eq!(sources, [TokenSource::Code("tail".to_owned()), TokenSource::Key]);
    }
}
