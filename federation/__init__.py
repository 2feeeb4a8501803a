"""What coordinator and hospitals must agree on. Knows neither of them."""
