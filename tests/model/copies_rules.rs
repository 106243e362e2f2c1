//! The rules that protect a copy, each with a switch.

/// Which rules hold. [`CopyRules::ALL`] is hapax.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyRules {
    /// The standby asks whose the copy is before it writes what it has read.
    pub(crate) the_standby_asks: bool,
    /// The restorer waits for the write of the standby that is under way before it looks where the copy stands.
    pub(crate) the_restorer_waits: bool,
    /// What the standby has read is bound to the turn in which it was read.
    pub(crate) one_turn: bool,
    /// A partition that was ours is not kept up as a copy before the journal has applied its last group.
    pub(crate) settled_first: bool,
    /// What the restorer reads, though nobody wants it any more, is neither kept up nor swept.
    pub(crate) what_is_read_is_not_free: bool,
    /// A restore waits until the groups of an earlier assignment of the same process are applied.
    pub(crate) a_restore_settles: bool,
    /// A copy that is kept up for another is not swept.
    pub(crate) a_copy_has_not_left: bool,
    /// What the journal may still write to is not swept.
    pub(crate) unsettled_is_not_swept: bool,
    /// A group that is applied late makes no copy where there is none.
    pub(crate) no_part_of_a_copy: bool,
    /// No partition is taken while the sweep deletes.
    pub(crate) nobody_comes_while_it_deletes: bool,
    /// A copy that stands before the beginning of the log is forgotten, and read anew; so is what a reader was about to read.
    pub(crate) begun_anew_outside_the_log: bool,
    /// Groups are applied in the order in which they were committed.
    pub(crate) applied_in_order: bool,
    /// A group is acknowledged when it is applied.
    pub(crate) applied_before_acknowledged: bool,
    /// How far a copy is reaches the disk together with what it has.
    pub(crate) position_with_its_records: bool,
}

impl CopyRules {
    /// Every rule is kept.
    pub(crate) const ALL: Self = Self {
        the_standby_asks: true,
        the_restorer_waits: true,
        one_turn: true,
        settled_first: true,
        what_is_read_is_not_free: true,
        a_restore_settles: true,
        a_copy_has_not_left: true,
        unsettled_is_not_swept: true,
        no_part_of_a_copy: true,
        nobody_comes_while_it_deletes: true,
        begun_anew_outside_the_log: true,
        applied_in_order: true,
        applied_before_acknowledged: true,
        position_with_its_records: true,
    };
}
