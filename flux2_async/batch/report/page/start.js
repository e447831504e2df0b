
prepare();
fillControls();
listen();
select();
setInterval(showExpectations, COUNTED);
if (document.body.dataset.events) follow(document.body.dataset.events);
