//! The rules that protect, each with a switch: a rule that can be left out without harm would not be one.

/// Which rules hold. [`Rules::ALL`] is hapax.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The gate of an assignment is cleared before the partition is given back, or the member joins again.
    pub(crate) gate_before_unassign: bool,
    /// The fence is committed before the first handler starts.
    pub(crate) fence_before_handler: bool,
    /// Every transaction carries the commit point: begins, held and un-begun messages too, not outcomes alone.
    pub(crate) offsets_in_every_transaction: bool,
    /// The group's metadata is taken before the gate is asked, not after.
    pub(crate) metadata_before_gate: bool,
    /// Metadata without a member (generation -1) is refused by us, because the broker would accept it.
    pub(crate) refuse_minus_one: bool,
    /// Committed offsets are read only when no transaction with offsets is pending.
    pub(crate) stable_offsets: bool,
    /// Committed offsets are read before the restore target is taken.
    pub(crate) offsets_before_target: bool,
    /// Restore reads up to the uncommitted high watermark, not up to the last stable offset.
    pub(crate) target_is_high_watermark: bool,
    /// A restore waits until the transaction of an earlier assignment of the same process has ended.
    pub(crate) barrier: bool,
    /// The commit carries partition time at the commit point, and an assignment starts with it.
    pub(crate) restored_time: bool,
    /// Only what has a slot is begun.
    pub(crate) slot_wise_begin: bool,
    /// A new producer forgets what was read, not what runs.
    pub(crate) keep_what_runs: bool,
    /// After a commit of unknown fate the changelog is read before the group is made again.
    pub(crate) look_up_unknown_fate: bool,
    /// What is still needed is written again before the head of the changelog is deleted.
    pub(crate) rewrite_before_trim: bool,
    /// A message whose own token is open waits or is held behind it; it is not suppressed.
    pub(crate) open_does_not_suppress: bool,
    /// What is held for another attempt is open: a second message of its token does not run beside it.
    pub(crate) held_is_open: bool,
    /// What was held and is un-begun for a drain is held again: its record is the only copy of the message.
    pub(crate) unbegun_stays_held: bool,
    /// A held message whose attempt was begun by somebody who is gone is in doubt; it does not simply run again.
    pub(crate) begun_again_is_in_doubt: bool,
    /// A verdict is written with its partition's own group, with the commit point, like everything else.
    pub(crate) verdict_with_its_group: bool,
    /// An order is answered when act and verdict are durable.
    pub(crate) answered_when_durable: bool,
    /// A verdict is carried out when it is durable.
    pub(crate) carried_out_when_durable: bool,
    /// A verdict that is found at an assignment is carried out.
    pub(crate) found_verdict_is_carried_out: bool,
    /// The begin of an ordered attempt takes the place of the verdict in the record.
    pub(crate) verdict_is_spent: bool,
    /// An order is refused where there were more attempts than whoever gives it knows of.
    pub(crate) tied_to_attempts: bool,
    /// The number of attempts at a message never goes back.
    pub(crate) attempts_go_on: bool,
    /// What is held behind its token is not decided about: the message before it is.
    pub(crate) behind_takes_no_verdict: bool,
    /// When the bytes of a held message are here, it is asked again whether it is at rest.
    pub(crate) looked_at_again: bool,
    /// While one order is on its way the next one waits.
    pub(crate) one_order_at_a_time: bool,
}

impl Rules {
    /// Every rule is kept.
    pub(crate) const ALL: Self = Self {
        gate_before_unassign: true,
        fence_before_handler: true,
        offsets_in_every_transaction: true,
        metadata_before_gate: true,
        refuse_minus_one: true,
        stable_offsets: true,
        offsets_before_target: true,
        target_is_high_watermark: true,
        barrier: true,
        restored_time: true,
        slot_wise_begin: true,
        keep_what_runs: true,
        look_up_unknown_fate: true,
        rewrite_before_trim: true,
        open_does_not_suppress: true,
        held_is_open: true,
        unbegun_stays_held: true,
        begun_again_is_in_doubt: true,
        verdict_with_its_group: true,
        answered_when_durable: true,
        carried_out_when_durable: true,
        found_verdict_is_carried_out: true,
        verdict_is_spent: true,
        tied_to_attempts: true,
        attempts_go_on: true,
        behind_takes_no_verdict: true,
        looked_at_again: true,
        one_order_at_a_time: true,
    };
}
