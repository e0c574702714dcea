//! The tickets of a control document: signed anew with each writing, and not remembered.
//!
//! There are thousands of agents, and the URLs of one are more than all else that is known of it.

use jiff::Timestamp;
use tradewind_checkpoints::StoreError;
use tradewind_protocol::{Control, Ticket};

use super::Serving;

/// A ticket that is still to be signed.
pub(super) fn unsigned() -> Ticket {
    Ticket { url: String::new(), expires: Timestamp::UNIX_EPOCH }
}

/// The document as it is remembered: with nothing of the tickets that [`Serving::sign`] makes but when they expire.
pub(super) fn take_urls(mut control: Control) -> Control {
    let always = [&mut control.control_get, &mut control.report_put, &mut control.report_get];
    for ticket in always.into_iter().chain(&mut control.start) {
        ticket.url = String::new();
    }
    control.logs = Vec::new();
    control
}

impl Serving<'_> {
    /// The document with fresh tickets. Those for upload slots stay: each is handed out once, with its batch.
    pub(super) async fn sign(&self, mut control: Control) -> Result<Control, String> {
        let (id, life) = (self.whom.id, self.ctx.settings.ticket_lifetime);
        let text = |error: StoreError| error.to_string();
        control.control_get = self.mailbox.control_ticket(id, life).await.map_err(text)?;
        control.report_put = self.mailbox.report_put_ticket(id, life).await.map_err(text)?;
        control.report_get = self.mailbox.report_get_ticket(id, life).await.map_err(text)?;
        control.logs = self.mailbox.log_tickets(id, self.whom.log_ring, life).await.map_err(text)?;
        if let (Some(_), Some(boot)) = (&control.start, &control.start_boot) {
            let start = self.mailbox.start_ticket(id, boot, control.attempt, life).await;
            control.start = Some(start.map_err(text)?);
        }
        Ok(control)
    }

    /// Whether the tickets have lived half of the life that the store really gives, which may be far less than was asked for.
    pub(super) async fn are_tickets_old(&self, control: &Control) -> Result<bool, String> {
        let fresh = self.mailbox.control_ticket(self.whom.id, self.ctx.settings.ticket_lifetime).await;
        let (fresh, now) = (fresh.map_err(|error| error.to_string())?, self.ctx.clock.now());
        let left = |ticket: &Ticket| ticket.expires.duration_since(now);
        Ok(left(&control.control_get) * 2 <= left(&fresh))
    }
}
