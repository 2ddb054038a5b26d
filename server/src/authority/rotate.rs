//! When an authority is made, when it starts to sign, and when it is forgotten: two slots and the time, nothing else.
//!
//! The machine knows nothing of certificates, keys or tables, so that X.509 CAs, JWT keys and WIT keys turn by the
//! same rules. [`next`] says what is due; whoever performs it (see `drive`) stores the new state first and then
//! applies the matching transition.

use std::fmt;
use std::time::SystemTime;

use finial_identity::lifetime;

/// Which of the two places an authority has; also the end of its key's name in the key manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotId {
    A,
    B,
}

impl SlotId {
    pub fn name(self) -> &'static str {
        match self {
            SlotId::A => "A",
            SlotId::B => "B",
        }
    }

    pub fn from_name(name: &str) -> Option<SlotId> {
        match name {
            "A" => Some(SlotId::A),
            "B" => Some(SlotId::B),
            _ => None,
        }
    }

    pub fn other(self) -> SlotId {
        match self {
            SlotId::A => SlotId::B,
            SlotId::B => SlotId::A,
        }
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How far an authority has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In the bundle, does not sign yet.
    Prepared,
    /// The one that signs.
    Active,
    /// Signs no more; what it signed may still be in use.
    Old,
}

/// An authority as the machine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// X.509: lowercase hex of the subject key identifier; JWT and WIT: the key ID.
    pub authority_id: String,
    pub issued_at: SystemTime,
    pub not_after: SystemTime,
    pub standing: Standing,
}

impl Held {
    /// When the successor is to be made.
    pub fn prepare_next_at(&self) -> SystemTime {
        lifetime::prepare_at(self.issued_at, self.not_after)
    }

    /// When the successor is to take over.
    pub fn activate_next_at(&self) -> SystemTime {
        lifetime::activate_at(self.issued_at, self.not_after)
    }
}

/// The two places. At most one authority is active and at most one prepared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    a: Option<Held>,
    b: Option<Held>,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make an authority in this slot and put it into the bundle.
    Prepare(SlotId),
    /// Let the prepared authority of this slot sign; the one that signed until now becomes old.
    Activate(SlotId),
    /// Empty this slot: what was in it has expired.
    Retire(SlotId),
    /// Nothing before this moment.
    Wait(SystemTime),
}

/// What is due now. Repeating it and applying its steps always ends in `Wait`.
pub fn next(slots: &Slots, now: SystemTime) -> Step {
    // An expired active authority stays in its slot: it is the state that operators see until it is replaced.
    let spent = |held: &Held| held.standing != Standing::Active && held.not_after <= now;
    if let Some(slot) = slots.find(spent) {
        return Step::Retire(slot);
    }
    let prepared = slots.prepared();
    let Some(active) = slots.active() else {
        return match prepared {
            Some(slot) => Step::Activate(slot),
            None => Step::Prepare(slots.find_empty().unwrap_or(SlotId::A)),
        };
    };
    let Some(held) = slots.get(active) else { return Step::Prepare(active) };
    match prepared {
        Some(slot) if held.activate_next_at() <= now => Step::Activate(slot),
        Some(_) => Step::Wait(held.activate_next_at()),
        None if held.prepare_next_at() <= now => Step::Prepare(active.other()),
        None => {
            let old_ends = slots.get(active.other()).map(|old| old.not_after);
            Step::Wait(old_ends.map_or(held.prepare_next_at(), |end| end.min(held.prepare_next_at())))
        }
    }
}

impl Slots {
    pub fn get(&self, slot: SlotId) -> Option<&Held> {
        match slot {
            SlotId::A => self.a.as_ref(),
            SlotId::B => self.b.as_ref(),
        }
    }

    pub fn active(&self) -> Option<SlotId> {
        self.find(|held| held.standing == Standing::Active)
    }

    pub fn prepared(&self) -> Option<SlotId> {
        self.find(|held| held.standing == Standing::Prepared)
    }

    /// The slots once `held` is in `slot`; what was there is forgotten.
    pub fn with(mut self, slot: SlotId, held: Held) -> Slots {
        *self.place(slot) = Some(held);
        self
    }

    /// The slots once the authority in `slot` signs; the one that signed until now is old.
    pub fn activated(mut self, slot: SlotId) -> Slots {
        if let Some(before) = self.place(slot.other())
            && before.standing == Standing::Active
        {
            before.standing = Standing::Old;
        }
        if let Some(held) = self.place(slot) {
            held.standing = Standing::Active;
        }
        self
    }

    /// The slots once `slot` is empty.
    pub fn without(mut self, slot: SlotId) -> Slots {
        *self.place(slot) = None;
        self
    }

    fn place(&mut self, slot: SlotId) -> &mut Option<Held> {
        match slot {
            SlotId::A => &mut self.a,
            SlotId::B => &mut self.b,
        }
    }

    fn find(&self, wanted: impl Fn(&Held) -> bool) -> Option<SlotId> {
        [SlotId::A, SlotId::B].into_iter().find(|slot| self.get(*slot).is_some_and(&wanted))
    }

    fn find_empty(&self) -> Option<SlotId> {
        [SlotId::A, SlotId::B].into_iter().find(|slot| self.get(*slot).is_none())
    }
}
