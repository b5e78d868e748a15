"""The records of the builtin corpus `everyday`: tables of things whose properties belong together.

The first line of a table names the fields, each further line is a record, drawn in proportion to the weight behind its
first field (`*3`, or 1). A text keeps the record it has drawn: {pet.sound} and {pet.food} speak of the same animal.
Fields may hold slots of their own, such as {he} and {his} for the child that the text is about.
"""

RECORDS = {
    "adult": """
    name; s; he; him; his; himself
    my grandmother *3; my grandmother's; she; her; her; herself
    my grandfather *3; my grandfather's; he; him; his; himself
    my aunt *2; my aunt's; she; her; her; herself
    my uncle *2; my uncle's; he; him; his; himself
    my mother *3; my mother's; she; her; her; herself
    my father *3; my father's; he; him; his; himself
    our neighbor; our neighbor's; she; her; her; herself
    the old man next door; the old man's; he; him; his; himself
    the young woman upstairs; the young woman's; she; her; her; herself
    my friend Carla; Carla's; she; her; her; herself
    my friend Bruno; Bruno's; he; him; his; himself
    our cousin Petra; Petra's; she; her; her; herself
    our cousin Dennis; Dennis's; he; him; his; himself
    my teacher; my teacher's; she; her; her; herself
    our landlord; our landlord's; he; him; his; himself
    """,
    "stranger": """
    name; he
    man; he
    woman; she
    """,
    "relative": """
    name; he; him; his
    mother *4; she; her; her
    father *4; he; him; his
    sister *2; she; her; her
    brother *2; he; him; his
    grandmother *3; she; her; her
    grandfather *3; he; him; his
    aunt; she; her; her
    uncle; he; him; his
    """,
    "pet": """
    kind; food; spot; act; sound; toy
    dog *4; a bone; on the rug by the door; wagged its tail; barked; a rubber ball
    puppy *2; some soft dog food; in its basket; jumped up and down; whined; an old slipper
    cat *4; a piece of fish; on the sofa; arched its back; purred; a ball of wool
    kitten *2; a little chicken; on a soft pillow; chased its own tail; mewed; a piece of string
    rabbit; a carrot; in its hutch; twitched its nose; thumped its feet; a cardboard box
    hamster; some sunflower seeds; in a nest of paper; stuffed its cheeks; squeaked; a small wheel
    guinea pig; a slice of cucumber; under the hay; stretched its short legs; squeaked; a paper tunnel
    parrot; a slice of mango; on its perch; tilted its head; whistled; a little bell
    canary; some bird seed; on its swing; flapped its wings; sang; a small mirror
    """,
    "wild": """
    kind; place; food; does; sleeps; trait; young
    bear; in the forest; berries, fish, and honey; sleeps through the winter; in a den; strong and heavy; cub
    squirrel; in the park; nuts and seeds; hides food for the winter; in a nest high in a tree; small and fast; kitten
    hedgehog; in the garden; beetles and worms; rolls into a ball when it is afraid; under dry leaves; \
        small and prickly; hoglet
    deer; in the woods; grass and leaves; runs away at the smallest sound; in the tall grass; shy and graceful; fawn
    owl; in an old tree; mice and voles; flies without a sound; in a hollow trunk; silent and watchful; owlet
    wolf; in the mountains; deer and hares; howls at the moon; among the rocks; gray and clever; pup
    beaver; by the river; bark and leaves; builds dams from branches; in a lodge in the water; busy and patient; kit
    otter; by the river; fish and crabs; floats on its back; in a hole in the bank; playful and nimble; pup
    frog; in the pond; flies and worms; catches insects with its long tongue; in the mud; green and slippery; tadpole
    bat; in a cave; moths and beetles; finds its way in the dark by its own echo; upside down; light and silent; pup
    mole; under the meadow; worms; digs long tunnels; in a chamber under the ground; blind and busy; pup
    badger; at the edge of the forest; roots, worms, and berries; comes out at night; in a burrow; shy and sturdy; cub
    elephant; on the plains of Africa; grass, bark, and fruit; sprays water with its trunk; in the shade; \
        huge and clever; calf
    lion; on the plains of Africa; zebras and antelopes; hunts with its family; under a tree; proud and lazy; cub
    giraffe; on the plains of Africa; leaves from tall trees; sees far across the land; standing up; \
        tall and calm; calf
    zebra; on the plains of Africa; grass; moves around in a large herd; standing up; striped and fast; foal
    monkey; in the jungle; bananas and nuts; swings from branch to branch; in the treetops; noisy and curious; infant
    tiger; in the jungle; deer and wild pigs; swims across rivers; in the thick bushes; striped and powerful; cub
    kangaroo; in Australia; grass and herbs; jumps over bushes; in the shade; fast and strong; joey
    koala; in Australia; leaves; sleeps almost all day; in a fork of a tree; slow and fluffy; joey
    penguin; on the icy coast; fish; dives deep into the sea; in a large group; clumsy on land; chick
    polar bear; on the sea ice; seals; swims for hours in icy water; in the snow; white and mighty; cub
    seal; on the rocky coast; fish and squid; claps its flippers; on the rocks; round and smooth; pup
    dolphin; in the ocean; fish; leaps out of the waves; near the surface; friendly and clever; calf
    whale; in the ocean; tiny shrimp; sings long songs under water; near the surface; gigantic and gentle; calf
    crocodile; in a muddy river; fish and birds; waits for hours without moving; on the river bank; \
        patient and dangerous; hatchling
    camel; in the desert; dry plants; carries people across the sand; on its knees; stubborn and tough; calf
    snake; among the stones; mice and frogs; warms itself in the sun; in a crack in the rock; long and silent; \
        hatchling
    eagle; in the mountains; hares and fish; circles high above the valley; in a nest on a cliff; \
        mighty and watchful; eaglet
    panda; in the misty mountains; bamboo; spends most of the day eating; against a tree; round and peaceful; cub
    hippo; in the river; grass; yawns with its enormous mouth; in the water; heavy and bad-tempered; calf
    lizard; on the old wall; flies and spiders; can lose its tail and grow a new one; under a stone; \
        fast and shy; hatchling
    raccoon; at the edge of the town; eggs, fruit, and scraps; opens trash cans at night; in a hollow log; \
        curious and bold; kit
    """,
    "farm": """
    kind; food; gives; sound; young; home; plural
    cow *2; grass and hay; gives milk every day; moos; calf; in the barn; cows
    sheep; grass; gives us wool; bleats; lamb; in the meadow; sheep
    goat; leaves and hay; gives milk for cheese; bleats; kid; on the hill; goats
    hen *2; corn and seeds; lays brown eggs; clucks; chick; in the coop; hens
    duck; grain and water plants; lays large eggs; quacks; duckling; by the pond; ducks
    goose; grass and grain; guards the yard; honks; gosling; behind the barn; geese
    pig; corn and potato peels; digs in the soil with its nose; grunts; piglet; in the sty; pigs
    horse *2; oats and hay; pulls the cart; neighs; foal; in the stable; horses
    donkey; hay and carrots; carries heavy sacks; brays; foal; in the shed; donkeys
    turkey; grain and grass; struts across the yard; gobbles; chick; next to the henhouse; turkeys
    """,
    "bird": """
    kind; food; nest; song; color
    robin; worms and berries; in the hedge; sings early in the morning; brown with a red breast
    blackbird; worms and cherries; in the ivy; whistles from the roof; black with a yellow beak
    swallow; flies; under the roof of the barn; twitters on the wire; blue and white
    woodpecker; beetles and ants; in a hole in a trunk; drums on dry wood; black, white, and red
    sparrow; seeds and crumbs; under the roof; chirps all day; brown and gray
    stork; frogs and mice; on top of the chimney; claps its beak; white with black wings
    crow; almost anything; at the top of a tall tree; caws loudly; black
    pigeon; grain and crumbs; on a window ledge; coos softly; gray
    nightingale; insects and berries; in a thick bush; sings at night; plain brown
    seagull; fish and scraps; on a cliff; screams over the harbor; white and gray
    cuckoo; caterpillars; in the nest of another bird; calls its own name; gray
    swan; water plants; in the reeds; hisses when it is angry; white
    """,
    "insect": """
    kind; does; place
    bee; collects nectar and makes honey; on the flowers
    ant; carries crumbs larger than itself; on the garden path
    butterfly; drinks from flowers with a long tongue; above the meadow
    spider; spins a fine web; between two branches
    ladybug; eats the lice on the roses; on a leaf
    grasshopper; chirps and jumps away; in the tall grass
    snail; carries its house on its back; on the wet wall
    dragonfly; hovers over the water; at the pond
    firefly; glows in the dark; under the trees
    beetle; digs a tunnel in the bark; on an old log
    caterpillar; eats holes into the cabbage; on the cabbage
    """,
    "weather": """
    adj; event; wear; out; inside; scene; season
    rainy *3; it rained all day; a raincoat and rubber boots; jumped over the puddles; \
        listened to the drops on the roof; gray clouds covered the sky; autumn
    snowy *2; it snowed all night; a thick coat and mittens; built a snowman; \
        watched the white flakes from the window; the whole street was white; winter
    sunny *3; the sun shone all day; a straw hat and sandals; played in the garden; opened all the windows; \
        there was not a cloud in the sky; summer
    windy *2; a strong wind blew all day; a warm jacket; flew a kite; heard the shutters bang; \
        the trees bent in the wind; autumn
    foggy; a thick fog came in; a bright scarf; walked slowly along the wall; waited for better weather; \
        nobody could see the end of the street; autumn
    frosty; the pond froze over; a woolen hat and gloves; skated on the ice; sat by the stove; \
        there was frost on the windows; winter
    hot *2; it was hotter than ever; a light shirt and shorts; swam in the lake; closed the curtains; \
        the air shimmered above the road; summer
    stormy; thunder rolled over the hills; a raincoat with a hood; ran home as fast as possible; \
        counted the seconds between lightning and thunder; dark clouds gathered in the west; summer
    cool; the wind was fresh; a knitted sweater; collected chestnuts; baked apples with cinnamon; \
        yellow leaves lay on the path; autumn
    mild; the air was soft and warm; a thin jacket; planted the first flowers; packed away the winter coats; \
        the birds were singing in every tree; spring
    """,
    "job": """
    title; place; does; did; tool; wish
    baker; in a bakery; bakes bread and rolls; baked fresh rolls before sunrise; a hot oven; wake up late for once
    teacher; at a school; explains things to children; explained the lesson twice; a piece of chalk; \
        have a quiet class
    doctor; in a hospital; treats sick people; examined many patients; a stethoscope; cure everyone
    nurse; in a hospital; looks after patients; changed bandages and gave out pills; a thermometer; \
        sit down for a minute
    farmer; on a farm; grows wheat and corn; plowed a large field; a tractor; see some rain
    mechanic; in a garage; repairs cars; changed the brakes of a van; a set of wrenches; own a racing car
    pilot; at the airport; flies large planes; landed safely in thick fog; a good radio; fly around the world
    plumber; all over town; fixes pipes; stopped a bad leak; a pipe wrench; keep dry feet
    electrician; on building sites; lays cables; found a faulty wire; a pair of pliers; build a solar roof
    carpenter; in a workshop; makes tables and doors; built a staircase; a sharp saw; build a wooden boat
    painter; in many houses; paints walls and ceilings; painted a long hallway; a broad brush; paint the whole sky
    gardener; in the city park; trims hedges; planted forty bulbs; a pair of shears; grow a blue rose
    tailor; in a small shop; sews suits; shortened six pairs of trousers; needle and thread; sew a wedding dress
    hairdresser; in a salon; cuts hair; cut hair until seven; a comb and scissors; open a second salon
    dentist; in a clinic; takes care of teeth; filled three teeth; a small mirror; see fewer holes
    vet; in an animal clinic; treats pets; bandaged the paw of a cat; a small lamp; understand what animals say
    librarian; in the library; lends books; sorted a cart of returned books; a card index; read every book
    waiter; in a restaurant; serves meals; carried plates all evening; a clean tray; have a free Saturday
    cook; in a hotel; prepares meals; cooked lunch for ninety guests; a sharp knife; open a restaurant
    mail carrier; in our district; delivers letters; delivered a heavy parcel; a yellow bicycle; \
        meet only friendly dogs
    firefighter; at the fire station; puts out fires; rescued a cat from a roof; a long hose; \
        have a week without alarms
    police officer; at the police station; keeps people safe; found a stolen bicycle; a whistle; solve a great mystery
    bus driver; in the city; drives a bus; drove through heavy traffic; a timetable; find only green lights
    train driver; for the railway; drives trains; brought everyone home on time; a signal lamp; drive through the Alps
    fisherman; on the coast; catches herring; came back with full nets; a strong net; catch a giant tuna
    cashier; in a supermarket; takes the money; counted coins all afternoon; a cash register; hear a friendly word
    engineer; in an office; designs bridges; checked the plan of a bridge; a computer; build a bridge across the bay
    programmer; in an office; writes software; found an error after four hours; a fast computer; write a famous game
    journalist; for a newspaper; writes articles; interviewed the mayor; a notebook; write a novel
    photographer; in a studio; takes pictures; photographed a wedding; a good camera; photograph a snow leopard
    musician; in an orchestra; plays the violin; rehearsed a symphony; a violin; play in a famous hall
    actor; at the theater; plays kings and beggars; learned a long role; a costume; be in a film
    shoemaker; in a workshop; mends shoes; put new soles on old boots; strong glue; make golden slippers
    watchmaker; in a tiny shop; repairs clocks; cleaned a pocket watch; a magnifying glass; stop time for a day
    pharmacist; in a pharmacy; sells medicine; mixed a cough syrup; a small scale; know every herb
    builder; on building sites; builds houses; laid a brick wall; a trowel; build a tower
    architect; in an office; draws plans for houses; drew a house with round windows; a sharp pencil; design a museum
    scientist; in a laboratory; does experiments; looked at a drop of water for hours; a microscope; \
        discover a new planet
    lifeguard; at the beach; watches the swimmers; pulled a boy out of the waves; a loud whistle; swim with dolphins
    florist; in a flower shop; makes bouquets; tied twenty bouquets; a pair of scissors; live in a greenhouse
    beekeeper; on a hillside; keeps bees; filled eighty jars with honey; a thick veil; never be stung again
    truck driver; on the highway; transports goods; drove four hundred miles; a good map; see the ocean
    secretary; in an office; answers the phone; typed eleven letters; a keyboard; work near a window
    judge; at the court; decides difficult cases; listened to nine witnesses; a wooden hammer; \
        find the truth every time
    optician; in a shop; sells glasses; tested the eyes of a boy; an eye chart; see the stars more clearly
    cleaner; in a tall office building; cleans the rooms; polished the long corridors; a mop; find a tidy room
    """,
    "store": """
    name; item; seller
    bakery *2; a loaf of bread; baker
    bookstore *2; a cookbook; bookseller
    pharmacy; some cough syrup; pharmacist
    flower shop; a bunch of tulips; florist
    toy store; a jigsaw puzzle; owner
    shoe store; a pair of boots; salesman
    hardware store; a box of screws; owner
    butcher shop; two sausages; butcher
    pet shop; a bag of bird seed; shop assistant
    stationery store; envelopes and stamps; shop assistant
    supermarket *2; rice and butter; cashier
    music store; a new guitar string; owner
    bicycle shop; a bell and a pump; mechanic
    """,
    "sport": """
    name; place; gear; did; verb
    football *2; on the field behind the school; a ball; scored the winning goal; play
    basketball; in the gym; a ball; scored ten points; play
    tennis *2; on the court; a racket; won the last set; play
    volleyball; on the beach; a net; saved a difficult ball; play
    baseball; in the stadium; a bat; hit a home run; play
    hockey; on the frozen pond; a stick; stopped a hard shot; play
    golf; on the green hills; a set of clubs; hit the ball into a bush; play
    badminton; in the yard; a racket; jumped for every ball; play
    handball; in the sports hall; a ball; threw from seven meters; play
    """,
    "hobby": """
    ing; thing; result; place
    painting; a new brush; a picture of the harbor; at the window
    knitting; a ball of green wool; a long scarf; in the armchair
    baking; a bag of flour; a tray of golden rolls; in the kitchen
    making candles; a block of wax; a set of yellow candles; in the cellar
    gardening; a packet of seeds; a bed of red tulips; behind the house
    drawing; a set of pencils; a portrait of the neighbor; at the desk
    sewing; a needle and some thread; a blue apron; by the lamp
    cooking; a heavy pan; a pot of spicy soup; in the kitchen
    photography; a small camera; an album of city views; in the studio
    carving; a sharp knife; a wooden horse; in the shed
    composing; a sheet of music paper; a song for two voices; at the piano
    writing; a thick notebook; a story about a lost dog; in the attic
    collecting stamps; a magnifying glass; an album of rare stamps; at the table
    making pottery; a lump of clay; a round bowl; in the workshop
    building models; a tube of glue; a model of a sailing ship; in the cellar
    folding paper; a stack of colored paper; a flock of paper birds; on the carpet
    """,
    "instrument": """
    name; sound; part
    piano *3; bright and clear; the keys
    guitar *3; soft and warm; the strings
    violin *2; a little squeaky; the strings
    flute; like a bird; the mouthpiece
    trumpet; very loud; the valves
    cello; deep and dark; the bow
    drum set; louder than thunder; the sticks
    clarinet; smooth and mellow; the reed
    accordion; cheerful; the buttons
    harp; like falling water; the strings
    """,
    "subject": """
    name; learned; task
    mathematics *2; how to divide large numbers; solved ten problems
    history *2; how people lived in castles; read about a famous queen
    geography *2; the names of the longest rivers; colored a map
    biology *2; how plants drink water; drew the parts of a flower
    physics; why ships float; measured the speed of a toy car
    chemistry; why iron rusts; mixed salt and water
    music; a song from Ireland; clapped the rhythm
    art; how to mix colors; painted a bowl of fruit
    English *2; twelve new words; wrote a short essay
    Spanish; how to say good morning; practiced a dialogue
    French; how to count to a hundred; read a poem aloud
    astronomy; the order of the planets; built a model of the sun
    """,
    "transport": """
    name; stop; person; late; sound
    bus *3; at the bus stop; driver; was stuck in traffic; rumbled over the bridge
    train *4; on the platform; conductor; was delayed by snow; rattled through a tunnel
    tram *2; at the corner; driver; had to wait for a fire engine; squealed around the bend
    ferry; at the pier; captain; had to wait for the tide; hooted in the fog
    plane *2; at the gate; pilot; had to wait for better weather; shook a little in the clouds
    """,
    "trip": """
    to; by; saw; ate; brought; did
    the sea *2; by train; white sails and gulls; grilled fish; a bag of shells; swam before breakfast
    the mountains *2; by car; eagles and snowy peaks; bread and strong cheese; a walking stick; climbed to a hut
    the desert; by jeep; sand dunes and a camel; dates and flat bread; a jar of red sand; slept in a tent
    an island; by ferry; a lighthouse and sleepy goats; olives and tomatoes; a straw hat; rowed around a small bay
    a big city *2; by bus; tall towers and bright lights; noodles from a street stall; a ticket from the museum; \
        rode the subway
    a farm; by bicycle; calves and geese; fresh eggs and brown bread; a jar of honey; helped in the barn
    the lake *2; by bus; herons and fishing boats; smoked trout; a smooth stone; paddled a canoe
    the forest *2; on foot; mushrooms and an old hut; sandwiches under a tree; a pine cone; followed a narrow path
    a castle; by coach; armor and dark stairs; stew in a stone hall; a wooden sword; climbed the highest tower
    the zoo *2; by tram; lions, zebras, and sleepy bears; ice cream; a picture of a giraffe; watched the seals at noon
    the hot springs; by plane; steam above the rocks; rye bread; a postcard of a geyser; bathed in warm water
    the vineyards; by car; long rows of grapes; bread with walnuts; a bottle of juice; picked grapes all morning
    """,
    "plant": """
    name; sow; pick; made; enemy
    tomatoes *2; in March; in August; a pot of sauce; the snails
    beans; in May; in July; a thick soup; the beetles
    potatoes *2; in April; in September; a large salad; the mice
    carrots; in April; in July; a fresh salad; the rabbits
    peas; in March; in June; a green soup; the pigeons
    pumpkins; in May; in October; an orange soup; the slugs
    strawberries *2; in August; in June; ten jars of jam; the blackbirds
    cucumbers; in May; in July; a jar of pickles; the snails
    onions; in March; in August; an onion tart; the flies
    radishes; in April; in June; a crisp salad; the slugs
    beets; in April; in July; a red soup; the caterpillars
    sunflowers; in April; in August; a bright bouquet; the birds
    """,
    "illness": """
    name; sign; cure; rest
    a cold *3; {his} nose was running; drank hot tea with honey; stayed in bed for two days
    a headache *2; {his} forehead hurt; took a pill and closed the curtains; lay down for an hour
    a sore throat *2; {he} could hardly speak; drank warm milk; did not speak all day
    a fever *2; {he} was hot and shivering; put a wet towel on {his} forehead; slept until noon
    a toothache; {his} cheek was swollen; went to the dentist; ate only soup
    a stomachache; {he} did not want to eat; drank chamomile tea; lay on the sofa with a blanket
    a cough; {he} could not stop coughing; took two spoons of syrup; stayed away from school
    a sunburn; {his} shoulders were red; put on cool cream; stayed in the shade
    a sprained ankle; {his} foot was blue and thick; put ice on it; did not run for two weeks
    an earache; {his} left ear was throbbing; got drops from the doctor; wore a warm hat
    """,
    "mishap": """
    did; then; fixed; next
    left the milk on the stove; it boiled over; cleaned the whole stove; stay beside the pot
    forgot {his} umbrella; the rain soaked {his} coat; changed into dry clothes; look at the sky first
    missed the bus; {he} came too late for the first lesson; said sorry to the teacher; leave ten minutes earlier
    put salt instead of sugar into the dough; the cake tasted awful; baked another one; taste everything first
    left the window open; the rain came in and the floor got wet; dried the floor with old towels; \
        close all the windows
    ran down the stairs; {he} slipped and twisted {his} foot; put ice on the foot; hold on to the railing
    left {his} bicycle unlocked; it was gone in the morning; told the police; lock it twice
    washed a red sock with the white shirts; everything turned pink; bought a new shirt; sort the laundry
    forgot to set the alarm; {he} slept until ten; skipped breakfast and ran; set two alarms
    carried too many plates at once; three of them fell and broke; swept up the pieces; walk twice
    stayed up until midnight; {he} fell asleep in class; went to bed right after dinner; turn off the light at nine
    did not tie {his} shoes; {he} fell over the laces; put a bandage on the knee; tie a double knot
    ate too many cherries; {his} stomach hurt all night; drank some mint tea; stop after one bowl
    kicked the ball too hard; it broke the neighbor's window; paid for the new glass; play in the park
    did not water the plants; the leaves turned yellow; gave them water and fresh soil; water them every Sunday
    left the gate open; the dog ran away; searched the whole village; check the gate
    read without a good light; {his} eyes began to hurt; bought a brighter lamp; sit by the window
    wrote the wrong address on the letter; it came back after a month; wrote a new envelope; check every line
    put the ice cream on the table; it melted in the sun; wiped up the sweet puddle; put it into the freezer
    did not charge {his} phone; it died in the middle of a call; borrowed a charger; charge it every night
    dropped the keys into a drain; {he} could not get into the house; called a locksmith; keep a spare key
    painted the bench and forgot the sign; a man sat down on the wet paint; gave him a clean pair of trousers; \
        hang up a big sign
    forgot the bread in the oven; smoke filled the kitchen; opened every window; use a timer
    went out without a jacket; {he} was shivering after an hour; took a hot bath; listen to the forecast
    """,
    "party": """
    name; deco; food; custom
    birthday *4; balloons; a cake with candles; everyone sang a song
    wedding; white flowers; a cake with three layers; the guests danced until midnight
    New Year's party; paper stars; a big bowl of punch; there were fireworks at midnight
    harvest festival; corn and pumpkins; roasted nuts; a band played in the barn
    summer party; colored lanterns; grilled sausages; the children played games on the lawn
    farewell party; a long banner; little sandwiches; everybody made a short speech
    school party; paper chains; lemonade and muffins; the choir sang three songs
    costume party; masks and streamers; doughnuts with jam; the best costume won a prize
    """,
}
