"""What fitted images themselves show: copies, outliers, too few of them."""
