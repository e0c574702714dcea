//! `offers`: what the market has, cheapest first, without a cluster.

mod render;
mod view;

use std::sync::Arc;

use tradewind_core::Clock;
use tradewind_providers::OfferQuery;

pub use self::render::render;
pub use self::view::{OffersView, wanted};
use crate::cli::{Form, OffersArgs};
use crate::market::Market;
use crate::screen::Screen;
use crate::{Trouble, trouble};

/// Runs the command.
pub async fn run(args: &OffersArgs, form: Option<Form>, screen: Screen, clock: Arc<dyn Clock>) -> Result<u8, Trouble> {
    let needs = wanted(args)?;
    let query =
        OfferQuery { min_gpu_count: needs.gpu_count, min_gpu_memory_mib: needs.min_gpu_memory_mib, disk_gib: 0 };
    let market = Market::read(&args.sources, &query, clock).await?;
    let view = OffersView::of(&needs, &market, args.limit)?;
    screen.show(form, &view, |ink| render(&view, form == Some(Form::Wide), ink))?;
    Ok(if view.offers.is_empty() { trouble::BAD } else { trouble::GOOD })
}
